// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// entry is what was resolved for an address.
type entry struct {
	// Row is that of the table, which has what is needed of it. At its Until it is looked at
	// again: asked for once more if it was used since checked, CLOCK_MONOTONIC, and dropped
	// otherwise.
	*Row
	origin  *state.Origin
	checked time.Duration
}

// carried is an identity that packets name and that no entry need have.
type carried struct {
	id     uint32
	origin *state.Origin
	from   string
	since  time.Time
	until  time.Time
}

// negative is an address that isn't asked for until then.
type negative struct {
	addr  netip.Addr
	owner cidrClaim
	// identity is the one that was asked for with it; misses that name another one are
	// another question.
	identity uint32
	outcome  Outcome
	// reason says more than the outcome does; empty if there is no more to say.
	reason string
	until  time.Time
}

// swallows says whether a miss is of the question that was answered.
func (n *negative) swallows(identity uint32, now time.Time) bool {
	return now.Before(n.until) && (identity == 0 || identity == n.identity)
}

// entries are what is known from lookups: at most so many of each kind, of which those
// that were touched longest ago go first. As all of a kind have the same time to live,
// which begins when they are touched, that is also the order in which they expire: what
// is due is found at the front (TestEntriesExpireInOrder).
//
// They are a state machine without I/O or clock, used by one goroutine at a time.
type entries struct {
	addresses  *simplelru.LRU[netip.Addr, *entry]
	identities *simplelru.LRU[uint32, *carried]
	negatives  *simplelru.LRU[netip.Addr, *negative]
	// users counts the entries and carried identities for which an identity is kept.
	users map[uint32]int
	limit int
}

func newEntries(limit int) (*entries, error) {
	e := &entries{users: map[uint32]int{}, limit: limit}
	var err error
	if e.addresses, err = simplelru.NewLRU[netip.Addr, *entry](limit, nil); err != nil {
		return nil, fmt.Errorf("making room for %d entries: %w", limit, err)
	}
	if e.identities, err = simplelru.NewLRU[uint32, *carried](limit, nil); err != nil {
		return nil, fmt.Errorf("making room for %d identities: %w", limit, err)
	}
	if e.negatives, err = simplelru.NewLRU[netip.Addr, *negative](limit, nil); err != nil {
		return nil, fmt.Errorf("making room for %d absent addresses: %w", limit, err)
	}
	return e, nil
}

// effect is what a change of the entries has others do.
type effect struct {
	// removed are entries whose rows go, and freed identities that nobody here uses
	// any more.
	removed []*entry
	freed   []*carried
	// dropped are identities that packets no longer carry, whoever else uses them.
	dropped []*carried
	// forgotten are negatives that are gone.
	forgotten []*negative
}

// put adds an entry, whose row nobody else has yet, or replaces the one of its address.
func (e *entries) put(n *entry) (did effect) {
	if old, ok := e.addresses.Peek(n.Addr); ok {
		if old.origin != n.origin {
			did.removed = append(did.removed, old)
		} else {
			n.Since = old.Since
		}
		e.use(n.Identity, 1)
		e.unuse(&did, old.Identity, old.origin)
	} else {
		if e.addresses.Len() >= e.limit {
			_, oldest, _ := e.addresses.GetOldest()
			did = e.remove(oldest)
		}
		e.use(n.Identity, 1)
	}
	e.addresses.Add(n.Addr, n)
	return did
}

// remove drops an entry.
func (e *entries) remove(n *entry) (did effect) {
	if e.addresses.Remove(n.Addr) {
		did.removed = append(did.removed, n)
		e.unuse(&did, n.Identity, n.origin)
	}
	return did
}

// carry adds an identity, or keeps it for longer.
func (e *entries) carry(n *carried) (did effect) {
	if old, ok := e.identities.Peek(n.id); ok {
		n.since = old.since
		if old.origin != n.origin { // the ID's cluster has another name now
			e.unuse(&did, old.id, old.origin)
			e.use(n.id, 1)
		}
	} else {
		if e.identities.Len() >= e.limit {
			_, oldest, _ := e.identities.GetOldest()
			did = e.drop(oldest)
		}
		e.use(n.id, 1)
	}
	e.identities.Add(n.id, n)
	return did
}

// drop is remove for an identity.
func (e *entries) drop(n *carried) (did effect) {
	if e.identities.Remove(n.id) {
		did.dropped = append(did.dropped, n)
		e.unuse(&did, n.id, n.origin)
	}
	return did
}

// deny remembers that there is nothing.
func (e *entries) deny(n *negative) (did effect) {
	if !e.negatives.Contains(n.addr) && e.negatives.Len() >= e.limit {
		_, oldest, _ := e.negatives.RemoveOldest()
		did.forgotten = append(did.forgotten, oldest)
	}
	e.negatives.Add(n.addr, n)
	return did
}

// undeny forgets that there was nothing.
func (e *entries) undeny(addr netip.Addr) (did effect) {
	if n, ok := e.negatives.Peek(addr); ok {
		e.negatives.Remove(addr)
		did.forgotten = append(did.forgotten, n)
	}
	return did
}

func (e *entries) use(id uint32, n int) {
	if id >= wire.MinIdentity {
		e.users[id] += n
	}
}

func (e *entries) unuse(did *effect, id uint32, origin *state.Origin) {
	if id < wire.MinIdentity {
		return
	}
	if e.users[id]--; e.users[id] <= 0 {
		delete(e.users, id)
		did.freed = append(did.freed, &carried{id: id, origin: origin})
	}
}

// next is when the first of all expires.
func (e *entries) next() (at time.Time, ok bool) {
	soonest := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	if _, n, found := e.addresses.GetOldest(); found {
		soonest(n.Until)
	}
	if _, n, found := e.identities.GetOldest(); found {
		soonest(n.until)
	}
	if _, n, found := e.negatives.GetOldest(); found {
		soonest(n.until)
	}
	return at, ok
}

func (d *effect) add(o effect) {
	d.removed = append(d.removed, o.removed...)
	d.freed = append(d.freed, o.freed...)
	d.dropped = append(d.dropped, o.dropped...)
	d.forgotten = append(d.forgotten, o.forgotten...)
}
