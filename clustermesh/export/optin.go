// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// optIn has endpoints and identities in two places each, and ties them together:
//
//	comes: an identity is queued as pushed before the first endpoint that uses it,
//	       and before what is queued for that endpoint already
//	goes:  it is no longer pushed once the deletion of the last one is committed
//
// (While commits are full several are under way at once; what is queued earlier may
// then be there a moment later, which readers bear with. It isn't waited for, since
// an identity that etcd refuses is to hold no endpoint back.)
//
// An identity that goes for another reason, its namespace or its own deletion, waits
// for the endpoints that go as well, and not for those that stay.
func (e *Exporter) optIn(tables state.Tables) {
	endpoints := find[*state.Endpoint](e.followers)
	identities := find[*state.Identity](e.followers)
	uses := newUses(func(key string) bool {
		return endpoints.pushed.AwaitKey(key, func() { e.inbox.released(key) })
	})
	e.uses = uses
	// Which identities are used is known once all endpoints are, and an endpoint's
	// identity comes first.
	e.decisive = append(e.decisive, tables.Endpoints, tables.Identities)

	endpoints.moves = e.newMoves(endpoints.places())
	endpoints.moves.left, endpoints.moves.stays = uses.leave, uses.stay
	endpoints.uses = uses
	endpoints.before = identities.flush
	endpoints.after = uses.applied
	endpoints.arrived = func(ctx context.Context, identity uint32, txn statedb.ReadTxn, r *round) error {
		return identities.addKey(ctx, wire.IdentityKey(identity), txn, r)
	}

	// Which identities an earlier process's endpoints use isn't known: as long as
	// there may be any left, every identity stays.
	pruned := func() bool { return endpoints.pushed.pruned > identities.pushed.losses }
	// An endpoint of another namespace may have got the address of one of these, and
	// be on its way to where it is looked up.
	leaves := func(identity uint32) bool {
		for key, from := range endpoints.moves.leaving {
			if from == endpoints.pushed && uses.of[key] == identity {
				return true
			}
		}
		return false
	}
	identities.moves = e.newMoves(identities.places())
	identities.moves.first = true
	identities.moves.held = func(key string, fate filter.Fate) bool {
		id, err := wire.ParseIdentityKey(key)
		if err != nil {
			return false
		}
		return uses.departs(id) || !pruned() || fate == filter.Kept && leaves(id)
	}
	identities.mayComplete = pruned
	identities.again = func(r *round) map[string]struct{} {
		keys := map[string]struct{}{}
		for id := range uses.take() {
			keys[wire.IdentityKey(id)] = struct{}{}
		}
		if r.pruned {
			for key := range identities.moves.leaving {
				keys[key] = struct{}{}
			}
		}
		return keys
	}
	// After the endpoints, which say what is used.
	e.followers = slices.DeleteFunc(e.followers, func(f tableFollower) bool { return f == tableFollower(identities) })
	e.followers = slices.Insert(e.followers, slices.Index(e.followers, tableFollower(endpoints))+1, tableFollower(identities))
}

func (e *Exporter) newMoves(places []*place) *moves {
	return &moves{
		pushed: places[0], onDemand: places[1],
		leaving: map[string]*place{},
		wake:    e.inbox.settled,
	}
}

func find[Row any](followers []tableFollower) *follower[Row] {
	for _, f := range followers {
		if f, ok := f.(*follower[Row]); ok {
			return f
		}
	}
	return nil
}
