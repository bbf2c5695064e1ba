// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// resolved is a fixture with one entry, whose time is over when the test wants it.
func resolved(t *testing.T) *fixture {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
	// What is told after the entry is in the tables.
	f.eventually(func(t *assert) {
		require.True(t, f.kernel.follows(podAddr))
		require.NotNil(t, f.row(podAddr))
	})
	return f
}

// use lets half of the time to live pass, then a packet, and then the rest.
func (f *fixture) use(addr netip.Addr) {
	f.clock.Step(f.engine.config.TTL / 2)
	f.kernel.used(addr, f.monotonic())
	f.elapse(f.engine.config.TTL / 2)
}

func TestUnusedEntryGoes(t *testing.T) {
	f := resolved(t)
	f.elapse(f.engine.config.TTL)
	f.requireGone(podAddr)
	f.eventually(func(t *assert) {
		require.Nil(t, f.identity(webID))
		require.Nil(t, f.row(podAddr))
		require.False(t, f.kernel.follows(podAddr))
	})
	require.Equal(t, 1, f.again(outcomeUnused))
	require.EqualValues(t, 1, f.source.asked.Load())
	require.Empty(t, f.writer.CountByOrigin()[f.writer.Origin("red", redID, state.SourceOnDemand)])
}

func TestUsedEntryIsAskedForAgain(t *testing.T) {
	t.Run("the same", func(t *testing.T) {
		f := resolved(t)
		since := f.row(podAddr).Since
		f.use(podAddr)
		f.eventually(func(t *assert) { require.Equal(t, 1, f.again("local")) })
		f.eventually(func(t *assert) {
			row := f.row(podAddr)
			require.NotNil(t, row)
			require.Equal(t, f.clock.Now().Add(f.engine.config.TTL), row.Until)
		})
		require.Equal(t, since, f.row(podAddr).Since)
		f.requireResolved(podAddr, webID)

		f.elapse(f.engine.config.TTL) // without a packet
		f.requireGone(podAddr)
	})
	t.Run("changed", func(t *testing.T) {
		f := resolved(t)
		f.source.has(endpointAt(podAddr, dbID))
		f.use(podAddr)
		f.requireResolved(podAddr, dbID)
		f.eventually(func(t *assert) { require.Nil(t, f.identity(webID)) })
		require.NotNil(t, f.identity(dbID))
	})
	t.Run("gone", func(t *testing.T) {
		f := resolved(t)
		f.source.has()
		f.use(podAddr)
		f.requireGone(podAddr)
		f.eventually(func(t *assert) { require.Equal(t, KindAbsent, kindOf(f.row(podAddr))) })
		require.Nil(t, f.identity(webID))
	})
	t.Run("unavailable", func(t *testing.T) {
		f := resolved(t)
		f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
		f.use(podAddr)
		f.eventually(func(t *assert) { require.Equal(t, 1, f.again(OutcomeUnavailable)) })
		require.NotNil(t, f.endpoint(podAddr))

		f.source.has(endpointAt(podAddr, dbID))
		f.use(podAddr)
		f.requireResolved(podAddr, dbID)
	})
	t.Run("malformed", func(t *testing.T) {
		f := resolved(t)
		f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrRefused })
		f.use(podAddr)
		f.eventually(func(t *assert) { require.Equal(t, 1, f.again(OutcomeRefused)) })
		require.NotNil(t, f.endpoint(podAddr), "as what is pushed: nonsense takes nothing back")
	})
	t.Run("not allowed", func(t *testing.T) {
		f := resolved(t)
		f.source.has(endpointAt(podAddr, blueWebID))
		f.use(podAddr)
		f.requireGone(podAddr)
	})
}

func TestUseUnknown(t *testing.T) {
	f := resolved(t)
	f.kernel.fail(errors.New("the map is away"))
	f.elapse(f.engine.config.TTL)
	f.eventually(func(t *assert) { require.Equal(t, 1, f.again("local")) })
	require.NotNil(t, f.endpoint(podAddr), "it may be in use")
}

func TestHeaderIdentityAlone(t *testing.T) {
	f := setup(t)
	f.source.answer(func(_ context.Context, q Question) (Answer, error) {
		return Answer{Identities: []wire.Identity{identityOf(q.Cluster, q.Identity)}}, nil
	})
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideSource, "local")) })
	require.NotNil(t, f.identity(webID))
	require.Nil(t, f.endpoint(podAddr))
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideSource, OutcomeNegative)) })
	require.EqualValues(t, 1, f.source.asked.Load())

	// Further packets keep it.
	f.elapse(f.engine.config.TTL / 2)
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.EqualValues(t, 2, f.source.asked.Load()) })
	f.eventually(func(t *assert) { require.Equal(t, 2, f.count(bpf.SideSource, "local")) })
	f.elapse(f.engine.config.TTL / 2)
	require.NotNil(t, f.identity(webID))
	f.elapse(f.engine.config.TTL)
	f.eventually(func(t *assert) { require.Nil(t, f.identity(webID)) })
}

func TestHeaderIdentityOfAPushedEndpoint(t *testing.T) {
	f := setup(t)
	f.push(endpointAt(podAddr, dbID))
	f.source.has(endpointAt(podAddr, webID))
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.NotNil(t, f.identity(webID)) })
	require.EqualValues(t, dbID, f.endpoint(podAddr).Identity(), "what is pushed stays")

	f.miss(from(podAddr, dbID))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideSource, OutcomeTable)) })
}

// TestHeaderIdentityOfAPushedEndpointInUse: the tables answer for it, and know nothing of
// how long it is to be kept.
func TestHeaderIdentityOfAPushedEndpointInUse(t *testing.T) {
	f := setup(t)
	f.push(endpointAt(podAddr, dbID))
	f.source.has(endpointAt(podAddr, webID))
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideSource, "local")) })
	for n := range 3 {
		f.elapse(f.engine.config.TTL / 2)
		f.miss(from(podAddr, webID))
		f.eventually(func(t *assert) { require.Equal(t, n+1, f.count(bpf.SideSource, OutcomeTable)) })
		require.NotNil(t, f.identity(webID))
	}
	require.EqualValues(t, 1, f.source.asked.Load())
	f.elapse(f.engine.config.TTL)
	f.eventually(func(t *assert) { require.Nil(t, f.identity(webID)) })
}

// TestIdentitiesThatAreNoEntries are those that the kernel takes for none.
func TestIdentitiesThatAreNoEntries(t *testing.T) {
	for _, id := range []uint32{identityWorld, identityWorldIPv4, identityWorldIPv6} {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			f := setup(t)
			f.source.answer(func(context.Context, Question) (Answer, error) {
				return Answer{Endpoint: new(endpointAt(podAddr, id))}, nil
			})
			require.Equal(t, OutcomeNegative, f.resolve(podAddr).Outcome)
			require.Nil(t, f.endpoint(podAddr))
			f.miss(to(podAddr))
			f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeNegative)) })
			require.EqualValues(t, 1, f.source.asked.Load())

			f.push(endpointAt(otherAddr, id))
			require.Equal(t, OutcomeTable, f.resolve(otherAddr).Outcome)
			require.True(t, f.swallowed(otherAddr, 0), "it is missed with each packet")
			require.Nil(t, f.row(otherAddr), "there is something")
		})
	}
	require.True(t, isAlwaysMissed(0x01000007))
	require.False(t, isAlwaysMissed(webID))
	require.False(t, isAlwaysMissed(identityRemoteNode))
}

// TestTablesAreNotWrittenForWhatTheyKnow: a transaction waits for those of others.
func TestTablesAreNotWrittenForWhatTheyKnow(t *testing.T) {
	f := setup(t)
	f.push(endpointAt(podAddr, webID))
	tx := f.writer.Begin()
	defer tx.Abort()
	require.Equal(t, OutcomeTable, f.resolve(podAddr).Outcome)
	require.Equal(t, OutcomeNegative, f.resolve(otherAddr).Outcome)
}

// TestEvictedIdentityIsNotListed although an entry still uses it.
func TestEvictedIdentityIsNotListed(t *testing.T) {
	f := setup(t, func(s *settings) { s.config.MaxEntries = 1 })
	f.source.has(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
	f.push(endpointAt(otherAddr, dbID))
	listed := func(id uint32) bool {
		_, _, ok := f.engine.table.Get(f.db.ReadTxn(), rowByKey.Query(fmt.Sprintf("identity/%d", id)))
		return ok
	}
	f.source.answer(func(_ context.Context, q Question) (Answer, error) {
		return Answer{Identities: []wire.Identity{identityOf(q.Cluster, q.Identity)}}, nil
	})
	third := netip.MustParseAddr("10.2.0.12")
	f.miss(from(third, webID))
	f.eventually(func(t *assert) { require.True(t, listed(webID)) })
	f.miss(from(otherAddr, webID+5))
	f.eventually(func(t *assert) {
		require.True(t, listed(webID+5))
		require.False(t, listed(webID))
	})
	require.NotNil(t, f.identity(webID), "the entry uses it")
}

func TestPacketWithAnotherIdentityThanTheEntry(t *testing.T) {
	f := resolved(t)
	// The address is another pod's now: nobody tells, but its packets do.
	f.source.has(endpointAt(podAddr, dbID))
	f.miss(from(podAddr, dbID))
	f.requireResolved(podAddr, dbID)

	// A late packet of the pod before.
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.EqualValues(t, 3, f.source.asked.Load()) })
	f.eventually(func(t *assert) { require.True(t, f.swallowed(podAddr, webID)) })
	f.miss(from(podAddr, webID))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideSource, OutcomeNegative)) })
	require.EqualValues(t, 3, f.source.asked.Load(), "not with each packet")
	f.requireResolved(podAddr, dbID)
}

// swallowed says whether a miss would be answered from memory.
func (f *fixture) swallowed(addr netip.Addr, identity uint32) bool {
	f.engine.mu.Lock()
	defer f.engine.mu.Unlock()
	n, ok := f.engine.entries.negatives.Peek(addr)
	return ok && n.swallows(identity, f.clock.Now())
}

func TestNegativeIsForgotten(t *testing.T) {
	f := setup(t)
	require.Equal(t, OutcomeNegative, f.resolve(podAddr).Outcome)
	f.miss(to(podAddr))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeNegative)) })
	require.EqualValues(t, 1, f.source.asked.Load())
	f.requireListed(podAddr, KindAbsent)

	f.source.has(endpointAt(podAddr, webID))
	f.elapse(f.engine.config.NegativeTTL)
	f.eventually(func(t *assert) { require.Nil(t, f.row(podAddr)) })
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
	f.requireListed(podAddr, KindEndpoint)
}

// requireListed waits for a row: whoever asked is told before it is written.
func (f *fixture) requireListed(addr netip.Addr, kind Kind) {
	f.eventually(func(t *assert) {
		row := f.row(addr)
		require.NotNil(t, row)
		require.Equal(t, kind, row.Kind)
	})
}

func TestAtMostMaxEntries(t *testing.T) {
	f := setup(t, func(s *settings) { s.config.MaxEntries = 4 })
	f.kernel.room = 4
	var all []wire.Endpoint
	for i := range byte(10) {
		all = append(all, endpointAt(netip.AddrFrom4([4]byte{10, 2, 0, 100 + i}), webID))
	}
	f.source.has(all...)
	for _, ep := range all {
		require.Equal(t, Outcome("local"), f.resolve(ep.Prefix.Addr()).Outcome)
	}
	require.Equal(t, 4, f.tables.Endpoints.NumObjects(f.db.ReadTxn()))
	f.eventually(func(t *assert) { require.Equal(t, 4, f.engine.table.NumObjects(f.db.ReadTxn())) })
	require.NotNil(t, f.endpoint(all[9].Prefix.Addr()))
	require.NotNil(t, f.identity(webID))
	for i := range byte(10) {
		require.Equal(t, OutcomeNegative, f.resolve(netip.AddrFrom4([4]byte{10, 2, 0, i})).Outcome)
	}
	f.eventually(func(t *assert) { require.Equal(t, 8, f.engine.table.NumObjects(f.db.ReadTxn())) })
	seen, err := f.kernel.LastSeen()
	require.NoError(t, err)
	require.Len(t, seen, 4)
	require.True(t, f.kernel.follows(all[9].Prefix.Addr()), "what is new is followed in place of what goes")
}

// TestEntriesExpireInOrder holds the order of the list to that of the times, and the
// uses of identities to what is there.
func TestEntriesExpireInOrder(t *testing.T) {
	origin := &state.Origin{Cluster: "red", ClusterID: redID, Source: state.SourceOnDemand}
	rapid.Check(t, func(t *rapid.T) {
		e, err := newEntries(3)
		require.NoError(t, err)
		now := time.Unix(0, 0)
		addr := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 5).Draw(t, "addr"))})
		})
		id := rapid.Uint32Range(wire.MinIdentity-1, wire.MinIdentity+2)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				e.put(&entry{origin: origin, Row: &Row{
					Addr: addr.Draw(t, "addr"), Identity: id.Draw(t, "id"), Until: now.Add(time.Minute)}})
			},
			"carry": func(t *rapid.T) {
				if id := id.Draw(t, "id"); id >= wire.MinIdentity {
					e.carry(&carried{id: id, origin: origin, until: now.Add(time.Minute)})
				}
			},
			"deny": func(t *rapid.T) { e.deny(&negative{addr: addr.Draw(t, "addr"), until: now.Add(time.Second)}) },
			"remove": func(t *rapid.T) {
				if n, ok := e.addresses.Peek(addr.Draw(t, "addr")); ok {
					e.remove(n)
				}
			},
			"drop": func(t *rapid.T) {
				if n, ok := e.identities.Peek(id.Draw(t, "id")); ok {
					e.drop(n)
				}
			},
			"wait": func(t *rapid.T) { now = now.Add(time.Second) },
			"": func(t *rapid.T) {
				users := map[uint32]int{}
				var last time.Time
				for _, n := range e.addresses.Values() {
					require.False(t, n.Until.Before(last))
					last = n.Until
					if n.Identity >= wire.MinIdentity {
						users[n.Identity]++
					}
				}
				for _, n := range e.identities.Values() {
					users[n.id]++
				}
				require.Equal(t, users, e.users)
				require.LessOrEqual(t, e.addresses.Len(), 3)
				require.LessOrEqual(t, e.negatives.Len(), 3)
			},
		})
	})
}
