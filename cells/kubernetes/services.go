// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/cilium/operator/watchers"
	"github.com/cilium/cilium/pkg/annotation"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/k8s"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	mcsapiv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// services joins Services with their EndpointSlices into rows of the table
// "services", and with ServiceExports into rows of "service-exports". It only
// notes what changed while a batch is applied, and computes each service once,
// at the end. Only the applier touches it.
type services struct {
	origin *state.Origin

	services map[string]*slim_corev1.Service
	// backends are by service, then by slice.
	backends map[string]map[string]*k8s.Endpoints
	exports  map[string]*mcsapiv1alpha1.ServiceExport

	// dirty are the services to compute again.
	dirty map[string]struct{}
	// held says that a list is still incomplete; until then nothing is written:
	// a service without the backends that are yet to be listed would displace
	// the complete one that readers have.
	held func() bool
}

func newServices(origin *state.Origin) *services {
	return &services{
		origin:   origin,
		services: map[string]*slim_corev1.Service{},
		backends: map[string]map[string]*k8s.Endpoints{},
		exports:  map[string]*mcsapiv1alpha1.ServiceExport{},
		dirty:    map[string]struct{}{},
		held:     func() bool { return false },
	}
}

func convertService(obj *slim_corev1.Service, _ report) (*slim_corev1.Service, bool) {
	return obj, true
}

// convertBackends gives the backends that an EndpointSlice holds, by upstream's
// own parser. That skips malformed addresses, so they are looked for separately.
func convertBackends(obj *slim_discoveryv1.EndpointSlice, report report) (*k8s.Endpoints, bool) {
	if obj.AddressType == slim_discoveryv1.AddressTypeIPv4 || obj.AddressType == slim_discoveryv1.AddressTypeIPv6 {
		for _, endpoint := range obj.Endpoints {
			for _, address := range endpoint.Addresses {
				if _, err := cmtypes.ParseAddrCluster(address); err != nil {
					report(problemAddress, fmt.Errorf("backend: %w", err))
				}
			}
		}
	}
	return k8s.ParseEndpointSliceV1(slog.New(slog.DiscardHandler), obj), true
}

// applyService notes that a Service changed.
func (s *services) applyService(_ *state.Txn, c change[*slim_corev1.Service], _ memory[struct{}]) struct{} {
	if c.deleted {
		delete(s.services, c.object)
	} else {
		s.services[c.object] = c.rows
	}
	s.dirty[c.object] = struct{}{}
	return struct{}{}
}

// applyBackends notes that an EndpointSlice changed; what it remembers is the
// service that the slice belonged to, which a change of its label changes.
func (s *services) applyBackends(_ *state.Txn, c change[*k8s.Endpoints], old memory[string]) string {
	var service string
	if !c.deleted && c.rows.ServiceName.Name() != "" {
		service = objectName(c.rows.ServiceName.Namespace(), c.rows.ServiceName.Name())
	}
	if old.value != "" && old.value != service {
		delete(s.backends[old.value], c.object)
		if len(s.backends[old.value]) == 0 {
			delete(s.backends, old.value)
		}
		s.dirty[old.value] = struct{}{}
	}
	if service != "" {
		if s.backends[service] == nil {
			s.backends[service] = map[string]*k8s.Endpoints{}
		}
		s.backends[service][c.object] = c.rows
		s.dirty[service] = struct{}{}
	}
	return service
}

// join writes the rows of every service that changed.
func (s *services) join(tx *state.Txn) {
	if len(s.dirty) == 0 || s.held() {
		return
	}
	for name := range s.dirty {
		s.writeService(tx, name)
		s.writeExport(tx, name)
	}
	clear(s.dirty)
}

func (s *services) writeService(tx *state.Txn, name string) {
	svc, ok := s.services[name]
	if !ok {
		namespace, name, _ := strings.Cut(name, "/")
		tx.DeleteService(s.origin, s.origin.Cluster, namespace, name)
		return
	}
	tx.UpsertService(s.origin, convertClusterService(s.origin, svc, s.slicesOf(name)))
}

// slicesOf is sorted, so that it doesn't depend on the order of events which
// slice wins when two name the same address.
func (s *services) slicesOf(service string) []*k8s.Endpoints {
	byName := s.backends[service]
	out := make([]*k8s.Endpoints, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out
}

// convertClusterService gives the row of a service. Upstream's converter does
// the work. It knows only shared services, and the table holds all of them:
// every service passes through it as a shared one, and is then marked as what
// upstream's annotations make it.
func convertClusterService(origin *state.Origin, svc *slim_corev1.Service, backends []*k8s.Endpoints) *wire.Service {
	shared := *svc
	shared.Annotations = map[string]string{annotation.GlobalService: "true"}
	row, _ := watchers.DefaultClusterServiceConverter{}.Convert(&shared,
		func(string, string) []*k8s.Endpoints { return backends })
	// A service without an address (of type ExternalName) would have an empty one,
	// for which readers refuse all of it.
	delete(row.Frontends, "")
	row.Cluster, row.ClusterID = origin.Cluster, origin.ClusterID
	row.Shared = annotation.GetAnnotationShared(svc)
	row.IncludeExternal = annotation.GetAnnotationIncludeExternal(svc)
	return row
}
