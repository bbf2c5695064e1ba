// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// follower knows the tables of endpoints and identities by their changes.
type follower struct {
	endpointChanges statedb.ChangeIterator[*state.Endpoint]
	identityChanges statedb.ChangeIterator[*state.Identity]
	endpoints       map[netip.Prefix]*state.Endpoint
	identities      map[uint32]*state.Identity
}

func newFollower(t require.TestingT, db *statedb.DB, tables state.Tables) *follower {
	f := &follower{endpoints: map[netip.Prefix]*state.Endpoint{}, identities: map[uint32]*state.Identity{}}
	wtxn := db.WriteTxn(tables.Endpoints, tables.Identities)
	defer wtxn.Commit()
	var err error
	f.endpointChanges, err = tables.Endpoints.Changes(wtxn)
	require.NoError(t, err)
	f.identityChanges, err = tables.Identities.Changes(wtxn)
	require.NoError(t, err)
	return f
}

func (f *follower) look(txn statedb.ReadTxn) {
	endpoints, _ := f.endpointChanges.Next(txn)
	for change := range endpoints {
		if f.endpoints[change.Object.Prefix()] = change.Object; change.Deleted {
			delete(f.endpoints, change.Object.Prefix())
		}
	}
	identities, _ := f.identityChanges.Next(txn)
	for change := range identities {
		if f.identities[change.Object.ID] = change.Object; change.Deleted {
			delete(f.identities, change.Object.ID)
		}
	}
}

// orderModel is a source, a Handler that takes it in, and who follows its tables.
type orderModel struct {
	handler    *handler
	db         *statedb.DB
	endpoints  etcd.Observer
	identities etcd.Observer
	*follower
	// source has the identities that it told of and didn't delete since; late the
	// endpoints that were taken in without theirs.
	source map[uint32]bool
	late   map[netip.Prefix]uint32
}

func newOrderModel(t *rapid.T) *orderModel {
	m := &orderModel{db: statedb.New(), source: map[uint32]bool{}, late: map[netip.Prefix]uint32{}}
	writer, err := state.NewWriter(m.db)
	require.NoError(t, err)
	m.follower = newFollower(t, m.db, writer.Tables())
	m.handler = NewFactory(Options{Log: slog.New(slog.DiscardHandler), Writer: writer, HoldTimeout: time.Hour,
		Local: wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255}})(peer).(*handler)
	m.handler.adopt(t.Context(), offerOf(wire.ClusterConfig{ID: peerID}))
	m.endpoints = &observer[wire.Endpoint]{handler: m.handler, resource: wire.Endpoints, codec: m.handler.endpointCodec()}
	m.identities = &observer[wire.Identity]{handler: m.handler, resource: wire.Identities, codec: m.handler.identityCodec()}
	return m
}

// check looks at what the last transaction has made.
func (m *orderModel) check(t *rapid.T) {
	m.look(m.db.ReadTxn())
	used := map[uint32]bool{}
	for prefix, row := range m.follower.endpoints {
		for _, claim := range append([]state.Claim{row.Claim()}, row.Waiting()...) {
			used[claim.Endpoint.Identity] = true
		}
		if row.Origin().Cluster != peer || m.late[prefix] == row.Identity() {
			continue
		}
		require.Contains(t, m.follower.identities, row.Identity(), "%s has no identity", prefix)
	}
	for id, row := range m.follower.identities {
		require.Equal(t, !m.source[id], row.Leaving)
		require.True(t, m.source[id] || used[id], "%d stays for nothing", id)
	}
	for id := range m.source {
		require.Contains(t, m.follower.identities, id)
	}
}

// claims says whether the cluster claims a prefix with this identity.
func (m *orderModel) claims(prefix netip.Prefix, id uint32) bool {
	row, _, found := m.handler.options.Writer.Tables().Endpoints.Get(m.db.ReadTxn(), state.EndpointByPrefix(prefix))
	return found && slices.ContainsFunc(append([]state.Claim{row.Claim()}, row.Waiting()...), func(c state.Claim) bool {
		return c.Origin == m.handler.origin && c.Endpoint.Identity == id
	})
}

var (
	orderAddresses  = []string{"10.3.0.1", "10.3.0.2", "10.3.0.3", "fd00:3::1"}
	orderIdentities = []uint32{webID, webID + 1, webID + 2}
)

// events draws some changes of keys, in order.
func drawEvents[K any](t *rapid.T, keys []K, name func(K) string, value func(K) []byte, told func(key K, gone bool)) (events []etcd.Event) {
	for range rapid.IntRange(1, 4).Draw(t, "events") {
		key := rapid.SampledFrom(keys).Draw(t, "key")
		event := etcd.Event{Key: name(key), Deleted: rapid.Bool().Draw(t, "gone")}
		if !event.Deleted {
			event.Value = value(key)
		}
		told(key, event.Deleted)
		events = append(events, event)
	}
	return events
}

// TestIdentitiesOutliveTheirEndpoints has endpoints and identities come and go in any
// order, and addresses pass between clusters. Whoever follows the tables never sees an
// endpoint whose identity isn't there, but for those that have waited for too long.
func TestIdentitiesOutliveTheirEndpoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newOrderModel(t)
		local := m.handler.options.Writer.Origin("home", 1, state.SourceLocal)
		t.Repeat(map[string]func(*rapid.T){
			"endpoints": func(t *rapid.T) {
				events := drawEvents(t, orderAddresses, func(a string) string { return a }, func(a string) []byte {
					return []byte(endpointValue(t, a, rapid.SampledFrom(orderIdentities).Draw(t, "identity"), rapid.SampledFrom([]string{"web", "db"}).Draw(t, "pod")))
				}, func(string, bool) {})
				m.endpoints.OnBatch(t.Context(), etcd.Batch{Events: events})
				for prefix, id := range m.late { // one that was late may say something else since
					if !m.claims(prefix, id) {
						delete(m.late, prefix)
					}
				}
			},
			"identities": func(t *rapid.T) {
				events := drawEvents(t, orderIdentities, func(id uint32) string { return fmt.Sprint(id) },
					func(uint32) []byte { return []byte(webLabels(peer)) },
					func(id uint32, gone bool) {
						if m.source[id] = !gone; gone {
							delete(m.source, id)
							return
						}
						for prefix, late := range m.late {
							if late == id {
								delete(m.late, prefix)
							}
						}
					})
				m.identities.OnBatch(t.Context(), etcd.Batch{Events: events})
			},
			"too late": func(t *rapid.T) {
				for _, ep := range m.handler.held.waiting(nil) {
					m.late[ep.Prefix] = ep.Identity
				}
				m.handler.tick(time.Now().Add(2 * time.Hour))
			},
			"an address of ours": func(t *rapid.T) {
				prefix := netip.MustParseAddr(rapid.SampledFrom(orderAddresses).Draw(t, "address"))
				claimed := rapid.Bool().Draw(t, "claimed")
				tx := m.handler.options.Writer.Begin()
				if claimed {
					tx.UpsertEndpoint(local, state.Owner{}, wire.Endpoint{Prefix: state.PrefixOf(prefix), Identity: 1<<16 + 1})
				} else {
					tx.DeleteEndpoint(local, state.Owner{}, state.PrefixOf(prefix))
				}
				tx.Commit()
			},
			"": m.check,
		})
		// A drain isn't held up, and leaves nothing.
		for _, a := range orderAddresses {
			m.endpoints.OnBatch(t.Context(), etcd.Batch{Events: []etcd.Event{{Key: a, Deleted: true}}})
		}
		m.handler.drain(t.Context(), allStreams)
		m.look(m.db.ReadTxn())
		require.Empty(t, m.follower.identities)
	})
}

// TestRefusedIdentityGoesAtOnce, although an endpoint uses it: what it said before
// isn't true any more.
func TestRefusedIdentityGoesAtOnce(t *testing.T) {
	f := setup(t)
	f.put(f.identityAt(webID, webLabels(peer)))
	f.put(f.endpointAt("10.3.0.1", webID, "web"))
	f.run()
	row := map[string]string{"endpoint 10.3.0.1": fmt.Sprint(webID, " web peer"), fmt.Sprint("identity ", webID): webLabels(peer)}
	f.wants(row)
	f.put(f.identityAt(webID, webLabels("other")))
	delete(row, fmt.Sprint("identity ", webID))
	f.wants(row)
}

// TestIdentityLeavesAcrossRestarts deletes an identity that an endpoint uses, and
// restarts the agent. The identity is still there, and goes with the endpoint; if it
// has come back meanwhile, it stays.
func TestIdentityLeavesAcrossRestarts(t *testing.T) {
	for _, comesBack := range []bool{false, true} {
		t.Run(fmt.Sprintf("comes back=%t", comesBack), func(t *testing.T) {
			f := newLocalFixture(t, home)
			identity, endpoint := wire.StatePrefix(wire.Identities, home.Name)+"4711", wire.StatePrefix(wire.Endpoints, home.Name)+"10.0.0.1"
			f.put(identity, []byte("k8s:app=web;"))
			f.put(endpoint, must(wire.MarshalEndpoint(&wire.Endpoint{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: 4711, Pod: "web"})))
			f.complete(wire.CacheResources...)
			stop := f.run(wire.CacheResources...)
			<-f.local.Ready()
			_, err := f.client.Etcd().Delete(t.Context(), identity)
			require.NoError(t, err)
			leaving := func(tables state.Tables, txn statedb.ReadTxn) bool {
				row, _, found := tables.Identities.Get(txn, state.IdentityByID(4711))
				return found && row.Leaving
			}
			require.Eventually(t, func() bool { return leaving(f.tables, f.db.ReadTxn()) && f.local.Save() != nil }, patience, tick)
			saved := snapshotOf(t, f.local.Save())
			stop()
			require.True(t, slices.ContainsFunc(saved.entries[wire.Identities], func(e Entry) bool { return e.Key == "4711" && e.Waits }))

			p := newProcess(t, saved)
			require.True(t, leaving(p.tables(), p.db.ReadTxn()))
			require.Equal(t, saved.rows, p.rows())
			p.start(t, f.client)
			defer p.stop()
			if comesBack {
				f.put(identity, []byte("k8s:app=web;"))
				require.Eventually(t, func() bool { return !leaving(p.tables(), p.db.ReadTxn()) }, patience, tick)
			}
			_, err = f.client.Etcd().Delete(t.Context(), endpoint)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return p.tables().Endpoints.NumObjects(p.db.ReadTxn()) == 0 }, patience, tick)
			left := 0
			if comesBack {
				left = 1
			}
			require.Equal(t, left, p.tables().Identities.NumObjects(p.db.ReadTxn()), "it goes in the same transaction")
		})
	}
}
