// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// usesOf counts the claims of each identity by looking at every row.
func (f *fixture) usesOf() map[uint32]int32 {
	uses := map[uint32]int32{}
	for row := range f.tables.Endpoints.All(f.db.ReadTxn()) {
		for _, claim := range append([]Claim{row.Claim()}, row.Waiting()...) {
			if claim.Endpoint.Identity >= wire.MinIdentity {
				uses[claim.Endpoint.Identity]++
			}
		}
	}
	return uses
}

// TestReleasedIdentitiesGoWithTheirLastUse has claims and identities of several
// origins come and go: an identity is there as long as its source has it or a claim
// uses it, and no longer, and the counts are those of the rows.
func TestReleasedIdentitiesGoWithTheirLastUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t)
		has := map[uint32]bool{} // the source
		rows := map[uint32]bool{}
		origins := []*Origin{f.local, f.red, f.blue, f.redResolved}
		origin := rapid.SampledFrom(origins)
		address := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "fd00::1"})
		number := rapid.SampledFrom([]uint32{7, 300, 301, 302})
		change := func(t *rapid.T, tx *Txn) {
			if rapid.Bool().Draw(t, "upsert") {
				tx.UpsertEndpoint(origin.Draw(t, "origin"), Owner{}, endpoint(address.Draw(t, "address"), number.Draw(t, "identity"), "web"))
			} else {
				tx.DeleteEndpoint(origin.Draw(t, "origin"), Owner{}, prefix(address.Draw(t, "address")))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"claims": func(t *rapid.T) {
				f.do(func(tx *Txn) {
					for range rapid.IntRange(1, 4).Draw(t, "changes") {
						change(t, tx)
					}
				})
			},
			"aborted": func(t *rapid.T) {
				tx := f.w.Begin()
				defer tx.Abort() // a draw may end it
				change(t, tx)
				tx.ReleaseIdentity(f.red, number.Draw(t, "released"))
			},
			"drain": func(t *rapid.T) {
				f.do(func(tx *Txn) { tx.DeleteOrigin(origin.Draw(t, "origin"), wire.Endpoints) })
			},
			"identity": func(t *rapid.T) {
				id := number.Draw(t, "identity")
				f.do(func(tx *Txn) { tx.UpsertIdentity(f.red, wire.Identity{ID: id, Labels: "k8s:app=web;"}) })
				has[id], rows[id] = true, true
			},
			"release": func(t *rapid.T) {
				id := number.Draw(t, "identity")
				f.do(func(tx *Txn) { tx.ReleaseIdentity(f.red, id) })
				delete(has, id)
			},
			"release of another's": func(t *rapid.T) {
				id := number.Draw(t, "identity")
				f.do(func(tx *Txn) { tx.ReleaseIdentity(f.blue, id) })
			},
			"": func(t *rapid.T) {
				uses := f.usesOf()
				require.Equal(t, uses, f.w.uses)
				for id := range rows {
					if !has[id] && uses[id] == 0 {
						delete(rows, id) // and it doesn't come back
					}
				}
				got := map[uint32]bool{}
				for row := range f.tables.Identities.All(f.db.ReadTxn()) {
					got[row.ID] = true
					require.Equal(t, !has[row.ID], row.Leaving)
				}
				require.Equal(t, rows, got)
				require.Equal(t, len(got), f.w.CountByOrigin()[f.red].Identities)
			},
		})
	})
}

// TestReleaseWithinATxn: the last use and its identity go together, and what is used
// again by the end of a Txn stays.
func TestReleaseWithinATxn(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *Txn) {
		tx.UpsertIdentity(f.red, wire.Identity{ID: 300, Labels: "k8s:app=web;"})
		tx.UpsertEndpoint(f.red, Owner{}, endpoint(ip, 300, "web"))
		tx.ReleaseIdentity(f.red, 300)
		require.True(t, tx.HasIdentity(300))
	})
	f.do(func(tx *Txn) {
		tx.UpsertEndpoint(f.red, Owner{}, endpoint(ip, 300, "other")) // its only use, changed
		require.True(t, tx.HasIdentity(300))
		tx.DeleteEndpoint(f.red, Owner{}, prefix(ip))
		tx.UpsertEndpoint(f.red, Owner{}, endpoint("10.0.0.9", 300, "other"))
	})
	require.Equal(t, 1, f.w.CountByOrigin()[f.red].Identities)
	f.do(func(tx *Txn) { tx.UpsertEndpoint(f.red, Owner{}, endpoint("10.0.0.9", 301, "other")) })
	require.Empty(t, f.w.CountByOrigin()[f.red].Identities)
}

// BenchmarkReleaseIdentity is an endpoint that goes and takes an identity along, among
// 100,000.
func BenchmarkReleaseIdentity(b *testing.B) {
	t := newBenchTable(b)
	t.fill(100_000)
	const id = 600_000
	ep := benchEndpoint(200_000)
	ep.Identity = id
	b.ReportAllocs()
	for b.Loop() {
		tx := t.w.Begin()
		tx.UpsertIdentity(t.origins[0], wire.Identity{ID: id, Labels: "k8s:app=web;"})
		tx.UpsertEndpoint(t.origins[0], Owner{}, ep)
		tx.ReleaseIdentity(t.origins[0], id)
		tx.DeleteEndpoint(t.origins[0], Owner{}, ep.Prefix)
		tx.Commit()
	}
}
