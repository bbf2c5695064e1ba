// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"iter"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

// wanted says what the map is to have: the table of endpoints, read as it is,
// and the claims of nodes beside it. There is no table of entries: for 500,000
// endpoints it took as much memory as their own, and more processor time than
// the map (see docs/performance.md).
//
// It is used by one goroutine.
type wanted struct {
	rules     rules
	endpoints statedb.Table[*state.Endpoint]
	claims    *claims
}

// newWanted begins with what depends on nothing.
func newWanted(rules rules, endpoints statedb.Table[*state.Endpoint]) *wanted {
	w := &wanted{rules: rules, endpoints: endpoints, claims: newClaims()}
	nobody := &owner{"-"}
	for _, entry := range rules.outside() {
		w.claims.put(nil, entry.Key, claim{nobody, state.SourceLocal, kindOutside, entry.Value})
	}
	return w
}

// at is the claim that wins a prefix; false where there is none.
func (w *wanted) at(txn statedb.ReadTxn, key Key) (claim, bool) {
	// A row that is found by a key's prefix is a usable one.
	if ep, _, ok := w.endpoints.Get(txn, state.EndpointByPrefix(key.Prefix())); ok {
		entry, _ := w.rules.endpoint(ep)
		return w.with(ep, entry), true
	}
	c, ok := w.claims.strongest[key]
	return c, ok
}

// with is the claim that wins the prefix of a usable endpoint.
func (w *wanted) with(ep *state.Endpoint, entry Entry) claim {
	of := claim{nil, ep.Origin().Source, kindEndpoint, entry.Value}
	if other, ok := w.claims.strongest[entry.Key]; ok && other.compare(of) < 0 {
		return other
	}
	return of
}

// all yields every entry that is wanted, once.
func (w *wanted) all(txn statedb.ReadTxn) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for ep := range w.endpoints.All(txn) {
			if entry, ok := w.rules.endpoint(ep); ok && !yield(Entry{entry.Key, w.with(ep, entry).value}) {
				return
			}
		}
		for key, c := range w.claims.strongest {
			if _, _, ok := w.endpoints.Get(txn, state.EndpointByPrefix(key.Prefix())); ok {
				continue // it was among the endpoints
			}
			if !yield(Entry{key, c.value}) {
				return
			}
		}
	}
}
