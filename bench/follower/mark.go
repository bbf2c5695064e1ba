// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"encoding/binary"
	"net/netip"

	"github.com/cespare/xxhash/v2"

	"github.com/waggle-mesh/waggle/cells/state"
)

// Object names an object of a benchmark's cluster: a hash. Who writes an object and
// who has its row work out the same one, whatever way the object takes between them,
// so that nothing needs to be put into it for the sake of being measured.
type Object uint64

// Mark is one state of an Object, worked out in the same way. The sum of the Marks of
// all rows says whether two tables are equal.
type Mark uint64

// Gone is the state of an object that was deleted.
func (o Object) Gone() Mark { return o.in(0) }

// in is a state of an object, by a number that is another one in each.
func (o Object) in(state uint64) Mark {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:8], uint64(o))
	binary.LittleEndian.PutUint64(raw[8:], state)
	return Mark(xxhash.Sum64(raw[:]))
}

func objectOf(kind, namespace, name string) Object {
	return Object(xxhash.Sum64String(kind + "/" + namespace + "/" + name))
}

// EndpointObject is the endpoint of a pod, and EndpointMark its state with an
// identity.
func EndpointObject(namespace, pod string) Object { return objectOf("endpoint", namespace, pod) }

// EndpointMark is the state of a pod's endpoint: which identity it has.
func EndpointMark(namespace, pod string, identity uint32) Mark {
	return EndpointObject(namespace, pod).in(uint64(identity) + 1)
}

// IdentityObject is an identity.
func IdentityObject(id uint32) Object {
	return Object(xxhash.Sum64(binary.LittleEndian.AppendUint32([]byte("identity/"), id)))
}

// IdentityMark is the state of an identity that is there: its labels don't change.
func IdentityMark(id uint32) Mark { return IdentityObject(id).in(1) }

// NodeObject is a node.
func NodeObject(name string) Object { return objectOf("node", "", name) }

// NodeMark is the state of a node that is there.
func NodeMark(name string) Mark { return NodeObject(name).in(1) }

// ServiceObject is a service.
func ServiceObject(namespace, name string) Object { return objectOf("service", namespace, name) }

// ServiceMark is the state of a service: which backends it has, in any order.
func ServiceMark(namespace, name string, backends []netip.Addr) Mark {
	sum := uint64(1)
	for _, backend := range backends {
		sum += xxhash.Sum64String(backend.String())
	}
	return ServiceObject(namespace, name).in(sum)
}

// namespaceOfAPIServer is where the API server has a service of its own, which
// isn't the benchmark's.
const namespaceOfAPIServer = "default"

func endpointRow(row *state.Endpoint) (Object, Mark, bool) {
	namespace, pod := row.Namespace(), row.Pod()
	return EndpointObject(namespace, pod), EndpointMark(namespace, pod, row.Identity()), true
}

func identityRow(row *state.Identity) (Object, Mark, bool) {
	return IdentityObject(row.ID), IdentityMark(row.ID), true
}

func nodeRow(row *state.Node) (Object, Mark, bool) {
	return NodeObject(row.Name), NodeMark(row.Name), true
}

func serviceRow(row *state.Service) (Object, Mark, bool) {
	backends := make([]netip.Addr, 0, len(row.Backends))
	for text := range row.Backends {
		if backend, err := netip.ParseAddr(text); err == nil { // else the mark differs, as it is to
			backends = append(backends, backend)
		}
	}
	return ServiceObject(row.Namespace, row.Name), ServiceMark(row.Namespace, row.Name, backends), row.Namespace != namespaceOfAPIServer
}
