// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"errors"
	"strings"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var errNoCreationTimestamp = errors.New("metadata.creationTimestamp is missing, which readers use to settle conflicts")

// convertServiceExport refuses what every reader would refuse.
func convertServiceExport(obj *mcsapiv1alpha1.ServiceExport, report report) (*mcsapiv1alpha1.ServiceExport, bool) {
	if obj.CreationTimestamp.IsZero() {
		report(problemTimestamp, errNoCreationTimestamp)
		return nil, false
	}
	return obj, true
}

// applyExport notes that a ServiceExport changed.
func (s *services) applyExport(_ *state.Txn, c change[*mcsapiv1alpha1.ServiceExport], _ memory[struct{}]) struct{} {
	if c.deleted {
		delete(s.exports, c.object)
	} else {
		s.exports[c.object] = c.rows
	}
	s.dirty[c.object] = struct{}{}
	return struct{}{}
}

// writeExport writes the export of a service, or its absence: an export needs
// a service of the same name that may be exported.
func (s *services) writeExport(tx *state.Txn, name string) {
	row, ok := convertExport(s.origin.Cluster, s.services[name], s.exports[name])
	if !ok {
		namespace, name, _ := strings.Cut(name, "/")
		tx.DeleteServiceExport(s.origin, s.origin.Cluster, namespace, name)
		return
	}
	tx.UpsertServiceExport(s.origin, row)
}

// convertExport gives the row of an export. Either may be nil. Services of type
// ExternalName have nothing to export, as upstream has it.
func convertExport(cluster string, svc *slim_corev1.Service, export *mcsapiv1alpha1.ServiceExport) (*wire.ServiceExport, bool) {
	if svc == nil || export == nil || svc.Spec.Type == slim_corev1.ServiceTypeExternalName {
		return nil, false
	}
	return mcsapitypes.FromCiliumServiceToMCSAPIServiceSpec(cluster, svc, export), true
}
