// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"slices"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// LookedUp is what a cluster's etcd has of one look-up. KV is nil, with the Header of the
// answer, where there is nothing; and Err is set where that isn't known: it is
// [wire.ErrIncomplete], wraps [etcd.ErrBadAnswer], or is the etcd's or the context's.
type LookedUp struct {
	etcd.Found
	Err error
}

// Lookup reads what there is of each look-up, all of which are about c's cluster, each at one
// revision, in a request that others may share, and within ctx. That there is nothing counts
// where the etcd is known to be complete: one that was emptied would take entries away that
// are in use.
func (c Connection) Lookup(ctx context.Context, lookups []wire.Lookup) []LookedUp {
	results := make([]LookedUp, len(lookups))
	for i, got := range c.Client.Lookup(ctx, wire.Asks(lookups, c.Config.Capabilities.Cached)...) {
		results[i] = c.lookedUp(lookups[i], got)
	}
	return results
}

// lookedUp picks the first key that there is, of what wire.Asks says.
func (c Connection) lookedUp(lookup wire.Lookup, got etcd.Got[etcd.Found]) LookedUp {
	if got.Err != nil {
		return LookedUp{Err: got.Err}
	}
	sources := got.Values[:len(got.Values)-wire.EvidenceCount]
	if at := slices.IndexFunc(sources, func(one etcd.Found) bool { return one.KV != nil }); at >= 0 {
		return LookedUp{Found: sources[at]}
	}
	evidence := make([][]byte, 0, wire.EvidenceCount)
	for _, one := range got.Values[len(sources):] {
		evidence = append(evidence, one.Value())
	}
	return LookedUp{etcd.Found{Header: sources[0].Header}, lookup.CheckAbsence(c.Config, c.RawConfig, evidence)}
}
