// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"net/netip"
	"strings"

	"github.com/cilium/cilium/api/v1/models"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	k8stypes "github.com/cilium/cilium/pkg/k8s/types"
	"github.com/cilium/statedb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8suid "k8s.io/apimachinery/pkg/types"

	"github.com/waggle-mesh/waggle/cells/state"
)

// form is the kind of object in which upstream has an endpoint.
type form[T runtime.Object] struct {
	what string
	// metric is the scope of upstream's metrics of it.
	metric string
	// of makes the object of an endpoint; ofName has nothing but its name.
	of     func(*k8stypes.CiliumEndpoint) T
	ofName func(namespace, pod string) T
	// podOf is the pod whose endpoint has that name.
	podOf func(namespace, name string) (string, string, bool)
}

// ciliumEndpoints are as upstream reads CiliumEndpoints.
var ciliumEndpoints = form[*k8stypes.CiliumEndpoint]{
	what: "ciliumendpoints", metric: "CiliumEndpoint",
	of:     func(e *k8stypes.CiliumEndpoint) *k8stypes.CiliumEndpoint { return e },
	ofName: newEndpoint,
	podOf:  func(namespace, name string) (string, string, bool) { return namespace, name, true },
}

// ciliumEndpointSlices have one endpoint each: who reads them asks for endpoints, and
// which slices they are in is nobody's business. A namespace has no dot.
var ciliumEndpointSlices = form[*ciliumv2alpha1.CiliumEndpointSlice]{
	what: "ciliumendpointslices", metric: "CiliumEndpointSlice",
	of: func(e *k8stypes.CiliumEndpoint) *ciliumv2alpha1.CiliumEndpointSlice {
		slice := newSlice(e.Namespace, e.Name)
		core := ciliumv2alpha1.CoreCiliumEndpoint{
			Name: e.Name, IdentityID: e.Identity.ID, Networking: e.Networking, NamedPorts: e.NamedPorts, ServiceAccount: e.ServiceAccount,
		}
		if e.Encryption != nil {
			core.Encryption = *e.Encryption
		}
		slice.Endpoints = []ciliumv2alpha1.CoreCiliumEndpoint{core}
		return slice
	},
	ofName: newSlice,
	podOf:  func(_, name string) (string, string, bool) { return strings.Cut(name, ".") },
}

func newEndpoint(namespace, pod string) *k8stypes.CiliumEndpoint {
	return &k8stypes.CiliumEndpoint{ObjectMeta: slim_metav1.ObjectMeta{
		Namespace: namespace, Name: pod,
		// The egress gateway tells endpoints apart by it, and refuses those that have none.
		UID: k8suid.UID(namespace + "/" + pod),
	}}
}

func newSlice(namespace, pod string) *ciliumv2alpha1.CiliumEndpointSlice {
	return &ciliumv2alpha1.CiliumEndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: namespace + "." + pod}, Namespace: namespace}
}

// endpointOf is the endpoint of a pod of this cluster with all its addresses. Its UID is
// its name, since the table doesn't have the real one, and it has no labels, which
// nobody reads of it.
func endpointOf(txn statedb.ReadTxn, table statedb.Table[*state.Endpoint], namespace, pod string) (*k8stypes.CiliumEndpoint, bool) {
	var endpoint *k8stypes.CiliumEndpoint
	for row := range table.List(txn, state.LocalEndpointsByPod(namespace, pod)) {
		e := row.Endpoint()
		if endpoint == nil {
			endpoint = newEndpoint(namespace, pod)
			endpoint.Networking = &ciliumv2.EndpointNetworking{NodeIP: addressText(e.HostIP)}
			endpoint.Identity = &ciliumv2.EndpointIdentity{ID: int64(e.Identity)}
			endpoint.ServiceAccount = e.ServiceAccount
			if e.EncryptionKey != 0 {
				endpoint.Encryption = &ciliumv2.EncryptionSpec{Key: int(e.EncryptionKey)}
			}
			for _, port := range e.NamedPorts {
				endpoint.NamedPorts = append(endpoint.NamedPorts, &models.Port{Name: port.Name, Port: port.Port, Protocol: port.Protocol})
			}
		}
		pair := &ciliumv2.AddressPair{}
		if addr := e.Prefix.Addr(); addr.Is4() {
			pair.IPV4 = addr.String()
		} else {
			pair.IPV6 = addr.String()
		}
		endpoint.Networking.Addressing = append(endpoint.Networking.Addressing, pair)
	}
	return endpoint, endpoint != nil
}

func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// podOfRow is the name of the endpoint, as namespace/pod, that a row is an address of;
// empty if it is none of a pod of this cluster.
func podOfRow(row *state.Endpoint) string {
	if origin := row.Origin(); origin == nil || origin.Source != state.SourceLocal || row.Namespace() == "" {
		return ""
	}
	return row.Namespace() + "/" + row.Pod()
}

// endpointRows is the source of all endpoints of this cluster in a form.
func endpointRows[T runtime.Object](db *statedb.DB, writer *state.Writer, f form[T]) *rows[*state.Endpoint] {
	table := writer.Tables().Endpoints
	return &rows[*state.Endpoint]{
		db: db, writer: writer, table: table, what: f.what,
		keyOf:  func(row *state.Endpoint) string { return row.Prefix().String() },
		nameOf: podOfRow,
		object: func(txn statedb.ReadTxn, name string) (runtime.Object, bool) {
			namespace, pod, _ := strings.Cut(name, "/")
			endpoint, ok := endpointOf(txn, table, namespace, pod)
			if !ok {
				return nil, false
			}
			return f.of(endpoint), true
		},
		bare: func(name string) runtime.Object {
			namespace, pod, _ := strings.Cut(name, "/")
			return f.ofName(namespace, pod)
		},
	}
}
