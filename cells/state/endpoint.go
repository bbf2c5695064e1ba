// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"strings"
	"unique"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Endpoint is a row of the table "endpoints": one address with the claim that
// wins. The key is the prefix.
//
// While several owners claim one address (an address is reused, an endpoint
// moves between slices, a delete is late), the others wait behind the primary,
// and the first of the strongest rank takes over when it goes; so the row, and
// the exported key, exist as long as any live claim does.
//
// A Claim takes 192 bytes, and an agent holds 500,000 rows. So the row is 80
// bytes, with addresses as bytes and what repeats kept once, and is read by
// methods; BenchmarkEndpointMemory guards its size.
type Endpoint struct {
	shared unique.Handle[shared]
	pod    string
	// rare is nil for a claim read from etcd that carries no metadata.
	rare *rare
	// waiting claims, strongest and oldest first; nil for almost every row.
	waiting *[]Claim
	addr    [16]byte
	host    [16]byte

	identity uint32
	bits     uint8
	families families
	key      uint8
	scope    wire.Scope
}

// rare is what only claims from Kubernetes (an owner) or few values on the wire
// (metadata) have.
type rare struct {
	owner    Owner
	metadata string
}

// families tells IPv4 from IPv6 in the addresses of a row.
type families uint8

const (
	addrIs4 families = 1 << iota
	hostIs4
	hostIsSet
)

// NewEndpoint makes the row for a claim on an address that nobody else claims.
// Only the Writer puts rows into the table; this is for tests of what reads
// them. The claim's strings are copied.
func NewEndpoint(claim Claim) *Endpoint { return newEndpoint(&claim, nil) }

// newEndpoint makes a row from the claim that wins and those that wait. It
// keeps no string of claim.Endpoint, which may point into a buffer of its
// decoder, and all of claim.Owner.
func newEndpoint(claim *Claim, waiting []Claim) *Endpoint {
	ep := &claim.Endpoint
	row := &Endpoint{
		shared:   intern(claim.Origin, ep),
		pod:      strings.Clone(ep.Pod),
		addr:     ep.Prefix.Addr().As16(),
		bits:     uint8(ep.Prefix.Bits()),
		identity: ep.Identity,
		key:      ep.EncryptionKey,
		scope:    ep.Scope,
	}
	if ep.Prefix.Addr().Is4() {
		row.families |= addrIs4
	}
	if ep.HostIP.IsValid() {
		row.host = ep.HostIP.As16()
		row.families |= hostIsSet
		if ep.HostIP.Is4() {
			row.families |= hostIs4
		}
	}
	if claim.Owner != (Owner{}) || ep.Metadata != "" {
		row.rare = &rare{owner: claim.Owner, metadata: strings.Clone(ep.Metadata)}
		if row.rare.owner.Pod == row.pod {
			row.rare.owner.Pod = row.pod
		}
	}
	row.setWaiting(waiting)
	return row
}

// withWaiting is row with other claims waiting.
func (e *Endpoint) withWaiting(waiting []Claim) *Endpoint {
	row := *e
	row.setWaiting(waiting)
	return &row
}

func (e *Endpoint) setWaiting(waiting []Claim) {
	e.waiting = nil
	if len(waiting) > 0 {
		e.waiting = &waiting
	}
}

// Prefix is the address; it is the row's key.
func (e *Endpoint) Prefix() netip.Prefix {
	return netip.PrefixFrom(addrOf(e.addr, e.families&addrIs4 != 0), int(e.bits))
}

// HostIP is the address of the node that the endpoint runs on; the zero Addr
// when the claim names none.
func (e *Endpoint) HostIP() netip.Addr {
	if e.families&hostIsSet == 0 {
		return netip.Addr{}
	}
	return addrOf(e.host, e.families&hostIs4 != 0)
}

func addrOf(b [16]byte, is4 bool) netip.Addr {
	addr := netip.AddrFrom16(b)
	if is4 {
		return addr.Unmap()
	}
	return addr
}

// Identity is the numeric security identity.
func (e *Endpoint) Identity() uint32 { return e.identity }

// EncryptionKey is the index of the IPsec key; 0 is none.
func (e *Endpoint) EncryptionKey() uint8 { return e.key }

// Scope says how far the endpoint is to be synced.
func (e *Endpoint) Scope() wire.Scope { return e.scope }

// Namespace is the pod's namespace.
func (e *Endpoint) Namespace() string { return e.shared.Value().namespace }

// Pod is the pod's name.
func (e *Endpoint) Pod() string { return e.pod }

// Origin is where the claim that wins comes from.
func (e *Endpoint) Origin() *Origin { return e.shared.Value().origin }

// Owner is the object that makes the claim that wins.
func (e *Endpoint) Owner() Owner {
	if e.rare == nil {
		return Owner{}
	}
	return e.rare.owner
}

// Endpoint is the claim that wins, as the schema says it. It allocates only for
// an endpoint with named ports.
func (e *Endpoint) Endpoint() wire.Endpoint {
	s := e.shared.Value()
	ep := wire.Endpoint{
		Prefix:         e.Prefix(),
		HostIP:         e.HostIP(),
		Identity:       e.identity,
		EncryptionKey:  e.key,
		Scope:          e.scope,
		Namespace:      s.namespace,
		Pod:            e.pod,
		ServiceAccount: s.serviceAccount,
		NamedPorts:     decodePorts(s.ports),
	}
	if e.rare != nil {
		ep.Metadata = e.rare.metadata
	}
	return ep
}

// Claim is the claim that wins.
func (e *Endpoint) Claim() Claim {
	return Claim{Origin: e.Origin(), Owner: e.Owner(), Endpoint: e.Endpoint()}
}

// Waiting are the claims behind the one that wins, in the order in which they
// would take over. The slice must not be modified.
func (e *Endpoint) Waiting() []Claim {
	if e.waiting == nil {
		return nil
	}
	return *e.waiting
}

// isBy says whether the claim that wins is this owner's.
func (e *Endpoint) isBy(origin *Origin, owner Owner) bool {
	return e.Origin() == origin && e.Owner() == owner
}

// says reports whether the row states ep already. It allocates nothing: most of
// what a resynchronisation brings is known.
func (e *Endpoint) says(ep *wire.Endpoint) bool {
	if e.identity != ep.Identity || e.key != ep.EncryptionKey || e.scope != ep.Scope ||
		e.pod != ep.Pod || e.HostIP() != ep.HostIP || e.Prefix() != ep.Prefix {
		return false
	}
	metadata := ""
	if e.rare != nil {
		metadata = e.rare.metadata
	}
	s := e.shared.Value()
	return metadata == ep.Metadata && s.namespace == ep.Namespace &&
		s.serviceAccount == ep.ServiceAccount && portsAre(s.ports, ep.NamedPorts)
}
