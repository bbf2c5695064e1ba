// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"

	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// convertEndpointSlice gives the claims of a CiliumEndpointSlice, one for each
// address of each of its endpoints. The slice is cluster-scoped: the namespace
// of its endpoints is a field of its own.
func convertEndpointSlice(obj *ciliumv2alpha1.CiliumEndpointSlice, report report) ([]claim, bool) {
	claims := make([]claim, 0, len(obj.Endpoints))
	for i := range obj.Endpoints {
		core := &obj.Endpoints[i]
		if core.Networking == nil {
			report(problemNetworking, fmt.Errorf("endpoint %s has no networking", objectName(obj.Namespace, core.Name)))
			continue
		}
		claims = appendClaims(claims, core.Name, wire.Endpoint{
			Identity:       uint32(core.IdentityID),
			EncryptionKey:  uint8(core.Encryption.Key),
			Namespace:      obj.Namespace,
			Pod:            core.Name,
			ServiceAccount: core.ServiceAccount,
			NamedPorts:     convertNamedPorts(core.NamedPorts),
		}, core.Networking, report)
	}
	return claims, true
}
