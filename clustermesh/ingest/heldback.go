// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// heldBack keeps endpoints until their identity is known. Identities and
// endpoints come by separate watches, which aren't ordered among themselves: an
// endpoint that is ahead of its identity would be dropped by policy until that
// arrives, and so the old row of its address stays in the meantime.
//
// Waiting is bounded, because a late identity is better than no connectivity: an
// endpoint that has waited for the timeout, or that is one more than the limit,
// is applied without its identity. The time counts from when the address began
// to wait, so that a source which keeps changing an address can't hold its old
// row for ever. The deletion of an identity affects no endpoint: it takes effect
// after those that use it are gone (state.Txn.ReleaseIdentity).
//
// It is a state machine without I/O or clock, used by one goroutine at a time.
// All operations are O(1) for each endpoint they concern (BenchmarkHeldBack). After expire at the
// time of next, what was let through equals what an application in any order
// gives (TestHeldBackEqualsOrderFree).
type heldBack struct {
	timeout time.Duration
	limit   int

	known    map[uint32]struct{}
	byPrefix map[netip.Prefix]*list.Element
	// byIdentity are the same elements, by the identity that they wait for.
	byIdentity map[uint32]map[netip.Prefix]*list.Element
	// byAge has the one that waits longest first.
	byAge *list.List
}

// held is one endpoint that waits, the value of an element.
type held struct {
	endpoint wire.Endpoint
	deadline time.Time
}

// localScope is the first number of the identities that a node allocates for
// itself (upstream's identity.IdentityScopeLocal): those are in no identity table.
const localScope uint32 = 1 << 24

func newHeldBack(timeout time.Duration, limit int) *heldBack {
	return &heldBack{
		timeout:    timeout,
		limit:      limit,
		known:      map[uint32]struct{}{},
		byPrefix:   map[netip.Prefix]*list.Element{},
		byIdentity: map[uint32]map[netip.Prefix]*list.Element{},
		byAge:      list.New(),
	}
}

// verdict is what becomes of an endpoint.
type verdict uint8

const (
	// takeNow: its identity is known, or needs not be.
	takeNow verdict = iota
	// wait: it is held back.
	wait
	// takeLate: it would have to wait, but too many do.
	takeLate
)

// offer decides about a new value of an endpoint, which replaces one that waits.
func (h *heldBack) offer(ep *wire.Endpoint, now time.Time) verdict {
	element, waits := h.byPrefix[ep.Prefix]
	switch {
	case h.ready(ep.Identity):
		h.forget(ep.Prefix)
		return takeNow
	case waits:
		h.unindex(element)
		element.Value.(*held).endpoint = *ep
	case h.byAge.Len() >= h.limit:
		return takeLate
	default:
		element = h.byAge.PushBack(&held{endpoint: *ep, deadline: now.Add(h.timeout)})
		h.byPrefix[ep.Prefix] = element
	}
	h.index(element)
	return wait
}

// ready says whether an endpoint of this identity needs not wait for it.
func (h *heldBack) ready(identity uint32) bool {
	if identity < wire.MinIdentity || identity >= localScope {
		return true
	}
	_, ok := h.known[identity]
	return ok
}

// forget drops an endpoint that waits, as its key was deleted.
func (h *heldBack) forget(prefix netip.Prefix) {
	if element, ok := h.byPrefix[prefix]; ok {
		h.remove(element)
	}
}

// identityKnown appends to dst the endpoints that waited for this identity.
func (h *heldBack) identityKnown(identity uint32, dst []wire.Endpoint) []wire.Endpoint {
	h.known[identity] = struct{}{}
	for _, element := range h.byIdentity[identity] {
		dst = append(dst, h.remove(element))
	}
	return dst
}

// identityGone makes later endpoints of this identity wait.
func (h *heldBack) identityGone(identity uint32) { delete(h.known, identity) }

// expire appends to dst the endpoints that have waited long enough at now.
func (h *heldBack) expire(now time.Time, dst []wire.Endpoint) []wire.Endpoint {
	for at, ok := h.next(); ok && !now.Before(at); at, ok = h.next() {
		dst = append(dst, h.remove(h.byAge.Front()))
	}
	return dst
}

// all appends to dst everything that waits, which then doesn't any more.
func (h *heldBack) all(dst []wire.Endpoint) []wire.Endpoint {
	for h.byAge.Len() > 0 {
		dst = append(dst, h.remove(h.byAge.Front()))
	}
	return dst
}

// waiting appends to dst everything that waits, in the order in which it began to.
func (h *heldBack) waiting(dst []wire.Endpoint) []wire.Endpoint {
	for element := h.byAge.Front(); element != nil; element = element.Next() {
		dst = append(dst, element.Value.(*held).endpoint)
	}
	return dst
}

// next is when expire has something to do.
func (h *heldBack) next() (time.Time, bool) {
	front := h.byAge.Front()
	if front == nil {
		return time.Time{}, false
	}
	return front.Value.(*held).deadline, true
}

// len is the number of endpoints that wait.
func (h *heldBack) len() int { return h.byAge.Len() }

func (h *heldBack) remove(element *list.Element) wire.Endpoint {
	h.unindex(element)
	ep := h.byAge.Remove(element).(*held).endpoint
	delete(h.byPrefix, ep.Prefix)
	return ep
}

func (h *heldBack) index(element *list.Element) {
	ep := &element.Value.(*held).endpoint
	waiting := h.byIdentity[ep.Identity]
	if waiting == nil {
		waiting = map[netip.Prefix]*list.Element{}
		h.byIdentity[ep.Identity] = waiting
	}
	waiting[ep.Prefix] = element
}

func (h *heldBack) unindex(element *list.Element) {
	ep := &element.Value.(*held).endpoint
	waiting := h.byIdentity[ep.Identity]
	delete(waiting, ep.Prefix)
	if len(waiting) == 0 {
		delete(h.byIdentity, ep.Identity)
	}
}
