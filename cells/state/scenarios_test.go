// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const ip = "10.0.0.1"

// requireHeld checks who holds the address, and that no follower of the table
// has ever seen it go.
func requireHeld(t *testing.T, f *fixture, origin *Origin, identity uint32, waiting int) {
	t.Helper()
	row := f.row(ip)
	require.NotNil(t, row)
	require.Equal(t, origin, row.Origin())
	require.Equal(t, identity, row.Identity())
	require.Len(t, row.Waiting(), waiting)
	require.Empty(t, f.gone())
}

func TestAddressReusedByNewPod(t *testing.T) {
	f := newFixture(t)
	before, after := Owner{Object: "endpoint/default/before"}, Owner{Object: "endpoint/default/after"}
	f.upsert(f.local, before, endpoint(ip, 100, "before"))
	require.False(t, f.upsert(f.local, after, endpoint(ip, 200, "after")))
	requireHeld(t, f, f.local, 100, 1)

	f.delete(f.local, before, ip)
	requireHeld(t, f, f.local, 200, 0)
	require.Equal(t, "after", f.row(ip).Pod())
	require.Equal(t, after, f.row(ip).Owner())

	f.delete(f.local, after, ip)
	require.Nil(t, f.row(ip))
	require.Len(t, f.gone(), 1)
}

func TestEndpointMovedBetweenSlices(t *testing.T) {
	t.Run("added first", func(t *testing.T) {
		f := newFixture(t)
		f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
		f.upsert(f.local, slice("b", "web"), endpoint(ip, 100, "web"))
		f.delete(f.local, slice("a", "web"), ip)
		requireHeld(t, f, f.local, 100, 0)
		require.Equal(t, slice("b", "web"), f.row(ip).Owner())
	})
	t.Run("removed first, in one batch", func(t *testing.T) {
		f := newFixture(t)
		f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
		f.do(func(tx *Txn) {
			tx.DeleteEndpoint(f.local, slice("a", "web"), prefix(ip))
			tx.UpsertEndpoint(f.local, slice("b", "web"), endpoint(ip, 100, "web"))
		})
		requireHeld(t, f, f.local, 100, 0)
	})
	t.Run("removed first, in two batches", func(t *testing.T) {
		f := newFixture(t)
		f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
		f.delete(f.local, slice("a", "web"), ip)
		require.Nil(t, f.row(ip), "no claim is left, so the row goes")
		require.Len(t, f.gone(), 1)
		f.upsert(f.local, slice("b", "web"), endpoint(ip, 100, "web"))
		requireHeld(t, f, f.local, 100, 0)
	})
}

func TestLateDelete(t *testing.T) {
	f := newFixture(t)
	f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
	f.upsert(f.local, slice("b", "db"), endpoint(ip, 200, "db"))
	f.delete(f.local, slice("a", "web"), ip)
	rev := f.tables.Endpoints.Revision(f.db.ReadTxn())

	f.delete(f.local, slice("a", "web"), ip)
	f.delete(f.local, slice("c", "db"), ip)
	f.delete(f.local, slice("b", "web"), ip)
	f.delete(f.red, slice("b", "db"), ip)
	requireHeld(t, f, f.local, 200, 0)
	require.Equal(t, rev, f.tables.Endpoints.Revision(f.db.ReadTxn()))
}

func TestRemoteClaimsLocalAddress(t *testing.T) {
	t.Run("after", func(t *testing.T) {
		f := newFixture(t)
		f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
		require.True(t, f.upsert(f.red, Owner{}, endpoint(ip, 131173, "evil")))
		requireHeld(t, f, f.local, 100, 1)
		require.Equal(t, Counts{Conflicts: 1}, f.w.Counts("red"))

		f.delete(f.local, slice("a", "web"), ip)
		requireHeld(t, f, f.red, 131173, 0)
		require.Equal(t, Counts{Endpoints: 1}, f.w.Counts("red"))
		require.Equal(t, Counts{}, f.w.Counts("home"))
	})
	t.Run("before", func(t *testing.T) {
		f := newFixture(t)
		require.False(t, f.upsert(f.red, Owner{}, endpoint(ip, 131173, "evil")))
		require.False(t, f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web")))
		requireHeld(t, f, f.local, 100, 1)
		require.Equal(t, Counts{Conflicts: 1}, f.w.Counts("red"))

		f.delete(f.red, Owner{}, ip)
		requireHeld(t, f, f.local, 100, 0)
		require.Equal(t, Counts{}, f.w.Counts("red"))
	})
	t.Run("a local pod after a local pod", func(t *testing.T) {
		f := newFixture(t)
		f.upsert(f.local, slice("a", "web"), endpoint(ip, 100, "web"))
		f.upsert(f.red, Owner{}, endpoint(ip, 131173, "evil"))
		f.upsert(f.local, slice("b", "db"), endpoint(ip, 200, "db"))
		f.delete(f.local, slice("a", "web"), ip)
		requireHeld(t, f, f.local, 200, 1)
	})
}

func TestTwoRemotesClaimOneAddress(t *testing.T) {
	claimed := func(t *testing.T) *fixture {
		f := newFixture(t)
		require.False(t, f.upsert(f.red, Owner{}, endpoint(ip, 131173, "r")))
		require.True(t, f.upsert(f.blue, Owner{}, endpoint(ip, 196709, "b")))
		require.True(t, f.upsert(f.blue, Owner{}, endpoint(ip, 196709, "b")), "reported as long as it lasts")
		requireHeld(t, f, f.red, 131173, 1)
		require.Equal(t, Counts{Endpoints: 1}, f.w.Counts("red"))
		require.Equal(t, Counts{Conflicts: 1}, f.w.Counts("blue"))
		return f
	}
	t.Run("the holder goes", func(t *testing.T) {
		f := claimed(t)
		f.delete(f.red, Owner{}, ip)
		requireHeld(t, f, f.blue, 196709, 0)
		require.Equal(t, Counts{Endpoints: 1}, f.w.Counts("blue"))
	})
	t.Run("the holder's cluster is drained", func(t *testing.T) {
		f := claimed(t)
		f.upsert(f.red, Owner{}, endpoint("10.0.0.2", 131173, "r2"))
		f.upsert(f.blue, Owner{}, endpoint("10.0.0.3", 196709, "b3"))
		f.do(func(tx *Txn) { tx.DeleteOrigin(f.red, wire.Endpoints) })
		require.Equal(t, prefix("10.0.0.2"), f.gone()[0])
		requireHeld(t, f, f.blue, 196709, 0)
		require.NotNil(t, f.row("10.0.0.3"))
		require.Equal(t, Counts{}, f.w.Counts("red"))
		require.Equal(t, Counts{Endpoints: 2}, f.w.Counts("blue"))
	})
	t.Run("the cluster that waits is drained", func(t *testing.T) {
		f := claimed(t)
		f.do(func(tx *Txn) { tx.DeleteOrigin(f.blue, wire.Endpoints) })
		requireHeld(t, f, f.red, 131173, 0)
		require.Equal(t, Counts{}, f.w.Counts("blue"))
	})
	t.Run("the holder updates", func(t *testing.T) {
		f := claimed(t)
		require.False(t, f.upsert(f.red, Owner{}, endpoint(ip, 131174, "r")))
		requireHeld(t, f, f.red, 131174, 1)
	})
	t.Run("the one that waits updates", func(t *testing.T) {
		f := claimed(t)
		require.True(t, f.upsert(f.blue, Owner{}, endpoint(ip, 196710, "b")))
		requireHeld(t, f, f.red, 131173, 1)
		f.delete(f.red, Owner{}, ip)
		requireHeld(t, f, f.blue, 196710, 0)
	})
}

func TestResolvedOnDemandThenPushed(t *testing.T) {
	f := newFixture(t)
	f.upsert(f.redResolved, Owner{}, endpoint(ip, 131173, "r"))
	require.False(t, f.upsert(f.red, Owner{}, endpoint(ip, 131173, "r")))
	requireHeld(t, f, f.red, 131173, 0)
	require.Equal(t, Counts{Endpoints: 1}, f.w.Counts("red"), "one cluster is in no conflict with itself")
	require.False(t, f.upsert(f.redResolved, Owner{}, endpoint(ip, 131174, "r")))
	requireHeld(t, f, f.red, 131173, 0)
	f.delete(f.red, Owner{}, ip)
	require.Nil(t, f.row(ip), "an answer from before the push doesn't come back")
}

func TestAbortLeavesNothing(t *testing.T) {
	f := newFixture(t)
	tx := f.w.Begin()
	tx.UpsertEndpoint(f.red, Owner{}, endpoint(ip, 131173, "r"))
	_, _, found := f.tables.Endpoints.Get(tx.ReadTxn(), EndpointByPrefix(prefix(ip)))
	require.True(t, found, "a Txn reads what it writes")
	tx.Abort()
	tx.Commit()
	require.Nil(t, f.row(ip))
	require.Empty(t, f.w.CountByOrigin())
}

func TestInvalidPrefixClaimsNothing(t *testing.T) {
	f := newFixture(t)
	require.False(t, f.upsert(f.red, Owner{}, wire.Endpoint{Identity: 131173}))
	require.Zero(t, f.tables.Endpoints.NumObjects(f.db.ReadTxn()))
}
