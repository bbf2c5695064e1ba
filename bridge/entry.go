// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/cilium/pkg/types"

	"github.com/waggle-mesh/waggle/cells/state"
)

// entry is an endpoint as the agent's ipcache has it.
type entry struct {
	ip       string
	host     net.IP
	key      uint8
	metadata *ipcache.K8sMetadata
	identity ipcache.Identity
}

// wants says whether rows of an origin are to be in the ipcache.
func (o Options) wants(origin *state.Origin) bool {
	if origin.Source == state.SourceLocal {
		return o.Local
	}
	return o.Remote
}

// writes says whether entries of a source are ours: upstream's own watchers, which would
// write such entries, don't run then.
func (o Options) writes(from source.Source) bool {
	switch from {
	case source.CustomResource:
		return o.Local
	case source.ClusterMesh:
		return o.Remote
	}
	return false
}

// keyOf is how the ipcache names a prefix: an endpoint by its address, which so stands
// before a CIDR of the same one.
func keyOf(prefix netip.Prefix) string {
	if prefix.IsSingleIP() {
		return prefix.Addr().String()
	}
	return prefix.String()
}

// newEntry is a row's entry, as upstream's watchers of CiliumEndpoints and of remote
// clusters make it; false if there is none. The error names ports that there can't be,
// without which the entry is good.
func newEntry(row *state.Endpoint) (entry, bool, error) {
	ep := row.Endpoint()
	e := entry{
		ip: keyOf(ep.Prefix), key: ep.EncryptionKey,
		identity: ipcache.Identity{ID: identity.NumericIdentity(ep.Identity), Source: source.ClusterMesh},
	}
	if ep.HostIP.IsValid() {
		e.host = ep.HostIP.AsSlice()
	}
	if row.Origin().Source == state.SourceLocal {
		if e.host == nil {
			return entry{}, false, nil // the node is told later
		}
		e.identity.Source = source.CustomResource
		if e.identity.ID == identity.IdentityUnknown {
			e.identity.ID = identity.ReservedIdentityUnmanaged
		}
	}
	if e.identity.ID == identity.ReservedIdentityHost {
		// Another node's host is none of ours.
		e.identity.ID = identity.ReservedIdentityRemoteNode
	}
	if ep.Namespace == "" && ep.Pod == "" && len(ep.NamedPorts) == 0 {
		return e, true, nil
	}
	e.metadata = &ipcache.K8sMetadata{Namespace: ep.Namespace, PodName: ep.Pod}
	var errs []error
	if len(ep.NamedPorts) > 0 {
		e.metadata.NamedPorts = make(types.NamedPortMap, len(ep.NamedPorts))
	}
	for _, port := range ep.NamedPorts {
		if err := e.metadata.NamedPorts.AddPort(port.Name, int(port.Port), port.Protocol); err != nil {
			errs = append(errs, fmt.Errorf("port %q of endpoint %s/%s: %w", port.Name, ep.Namespace, ep.Pod, err))
		}
	}
	return e, true, errors.Join(errs...)
}
