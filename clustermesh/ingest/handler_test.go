// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

var yes = true

// oneOfEach puts one object of each resource.
func (f *fixture) oneOfEach() map[string]string {
	f.put(pairs(
		two(f.identityAt(webID, webLabels(peer))),
		two(f.nodeAt("node-1", peer, peerID)),
		two(f.endpointAt("10.3.0.1", webID, "web-1")),
		two(f.endpointAt("fd00:3::1", webID, "web-1")),
		two(f.serviceAt("web", peer, peerID)),
		two(f.exportAt("web", peer)),
	)...)
	return map[string]string{
		fmt.Sprint("identity ", webID): webLabels(peer),
		"node peer/node-1":             "clustermesh [{InternalIP 192.168.3.1}]",
		"endpoint 10.3.0.1":            fmt.Sprint(webID, " web-1 peer"),
		"endpoint fd00:3::1":           fmt.Sprint(webID, " web-1 peer"),
		"service peer/shop/web":        "true",
		"export peer/shop/web":         "ClusterSetIP",
	}
}

func two(key, value string) []string { return []string{key, value} }

func pairs(in ...[]string) (out []string) {
	for _, p := range in {
		out = append(out, p...)
	}
	return out
}

func (f *fixture) putCanaries() {
	for _, r := range wire.Resources {
		f.put(wire.CanaryKey(r, peer, f.config.Capabilities.Cached), "2026-01-01T00:00:00Z")
	}
}

func TestTakesInEveryLayout(t *testing.T) {
	for _, cached := range []bool{false, true} {
		for _, canaries := range []bool{false, true} {
			t.Run(fmt.Sprintf("cached=%t canaries=%t", cached, canaries), func(t *testing.T) {
				f := setup(t)
				f.config.Capabilities = wire.Capabilities{Cached: cached, SyncedCanaries: canaries, ServiceExportsEnabled: &yes}
				want := f.oneOfEach()
				if canaries {
					f.run()
					// Everything is there, but the endpoints wait for the identities.
					f.wantsRow(func(c *assert, row state.RemoteCluster) {
						require.Equal(c, 1, row.Resources[wire.ServiceExports].Entries)
						require.Equal(c, 1, row.Resources[wire.Identities].Entries)
						require.False(c, row.Resources[wire.Identities].Synced)
						require.False(c, row.Ready)
					})
					f.putCanaries()
				} else {
					f.run()
				}
				f.wants(want)
				f.ready()
				row := f.row()
				require.Len(t, row.Resources, 5)
				for r, of := range row.Resources {
					require.True(t, of.Enabled && of.Synced, "%s", r)
				}
				require.Equal(t, 2, row.Resources[wire.Endpoints].Entries)
				require.Empty(t, row.Refused)
				require.False(t, row.LastEvent.IsZero())
				require.Zero(t, row.Late)

				node, _, _ := f.tables.Nodes.Get(f.db.ReadTxn(), state.NodeByName(peer, "node-1"))
				require.Equal(t, state.Origin{Cluster: peer, ClusterID: peerID, Source: state.SourceClusterMesh}, *node.Origin)
			})
		}
	}
}

func TestServiceExportsOnlyWhereOffered(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	stop := f.run()
	export := want["export peer/shop/web"]
	delete(want, "export peer/shop/web")
	f.wants(want)
	f.ready()
	require.Equal(t, state.ResourceState{}, f.row().Resources[wire.ServiceExports])

	stop()
	f.config.Capabilities.ServiceExportsEnabled = new(bool)
	stop = f.run()
	want["export peer/shop/web"] = export
	f.wants(want)
	f.ready()

	stop()
	f.config.Capabilities.ServiceExportsEnabled = nil
	f.run()
	delete(want, "export peer/shop/web")
	f.wants(want)
	f.ready()
}

func TestChangesAndDeletions(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	delete(want, "export peer/shop/web")
	f.run()
	f.wants(want)

	f.put(f.endpointAt("10.3.0.1", webID, "web-2"))
	want["endpoint 10.3.0.1"] = fmt.Sprint(webID, " web-2 peer")
	f.wants(want)

	// An endpoint survives its identity in etcd, and keeps it here.
	f.put(f.key(wire.Identities, fmt.Sprint(webID)), "",
		f.key(wire.Nodes, "node-1"), "", f.key(wire.Services, "shop/web"), "", f.key(wire.Endpoints, "fd00:3::1"), "")
	left := map[string]string{"endpoint 10.3.0.1": want["endpoint 10.3.0.1"],
		fmt.Sprint("identity ", webID): want[fmt.Sprint("identity ", webID)]}
	f.wants(left)
	f.put(f.key(wire.Endpoints, "10.3.0.1"), "")
	f.wants(map[string]string{})
}

// TestReconnectBringsTheDifference stops the Handler while the source changes;
// the one reconnects to the same etcd, to one compacted in between, and to
// another etcd with other content.
func TestReconnectBringsTheDifference(t *testing.T) {
	for _, cached := range []bool{false, true} {
		for name, away := range map[string]func(f *fixture){
			"same etcd": func(*fixture) {},
			"compacted": func(f *fixture) {
				resp, err := f.client.Etcd().Get(f.Context(), "x")
				require.NoError(f, err)
				_, err = f.client.Etcd().Compact(f.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
				require.NoError(f, err)
			},
			"another etcd": func(f *fixture) { f.swap("") },
		} {
			t.Run(fmt.Sprintf("%s cached=%t", name, cached), func(t *testing.T) {
				f := setup(t)
				f.config.Capabilities = wire.Capabilities{Cached: cached, SyncedCanaries: true, ServiceExportsEnabled: &yes}
				want := f.oneOfEach()
				f.putCanaries()
				stop := f.run()
				f.wants(want)
				f.ready()
				stop()

				endpoints, identities, nodes := f.watch(t)
				before := f.server
				// Changes while the Handler is away: one of each kind.
				if name != "another etcd" {
					f.put(pairs(
						two(f.key(wire.Endpoints, "10.3.0.1"), ""),
						two(f.endpointAt("10.3.0.2", webID, "web-2")),
						two(f.identityAt(dbID, webLabels(peer))),
					)...)
				}
				away(f)
				if f.server != before {
					f.oneOfEach()
					f.put(pairs(
						two(f.key(wire.Endpoints, "10.3.0.1"), ""),
						two(f.endpointAt("10.3.0.2", webID, "web-2")),
						two(f.identityAt(dbID, webLabels(peer))),
					)...)
					f.putCanaries()
				}
				f.run()

				delete(want, "endpoint 10.3.0.1")
				want["endpoint 10.3.0.2"] = fmt.Sprint(webID, " web-2 peer")
				want[fmt.Sprint("identity ", dbID)] = webLabels(peer)
				f.wants(want)
				require.ElementsMatch(t, []string{"-10.3.0.1/32", "+10.3.0.2/32"}, endpoints())
				require.Equal(t, []string{fmt.Sprint("+", dbID)}, identities())
				require.Empty(t, nodes())
			})
		}
	}
}

// TestAnotherEtcdBehindTheAddress replaces the etcd under a Handler that runs.
// What both have isn't touched, and nothing is deleted before the new one is
// complete; with the same token only its history tells it from the old one.
func TestAnotherEtcdBehindTheAddress(t *testing.T) {
	for _, token := range []string{"", "same"} {
		t.Run("token="+token, func(t *testing.T) {
			f := setup(t)
			f.replace(token)
			f.config.Capabilities = wire.Capabilities{Cached: true, SyncedCanaries: true, ServiceExportsEnabled: &yes}
			want := f.oneOfEach()
			f.put(f.endpointAt("10.3.0.5", webID, "web-5"))
			f.putCanaries()
			f.run()
			want["endpoint 10.3.0.5"] = fmt.Sprint(webID, " web-5 peer")
			f.wants(want)
			f.ready()

			endpoints, identities, nodes := f.watch(t)
			f.replace(token)
			f.put(f.endpointAt("10.3.0.6", webID, "web-6"))
			want["endpoint 10.3.0.6"] = fmt.Sprint(webID, " web-6 peer")
			f.wants(want)
			f.oneOfEach()
			f.putCanaries()
			delete(want, "endpoint 10.3.0.5")
			f.wants(want)
			require.ElementsMatch(t, []string{"-10.3.0.5/32", "+10.3.0.6/32"}, endpoints())
			require.Empty(t, identities())
			require.Empty(t, nodes())
			require.True(t, f.row().Ready)
		})
	}
}

// watch gives functions that say what was changed since they were last called.
func (f *fixture) watch(t *testing.T) (endpoints, identities, nodes func() []string) {
	return changesOf(t, f.db, f.tables.Endpoints, func(ep *state.Endpoint) string { return ep.Prefix().String() }),
		changesOf(t, f.db, f.tables.Identities, func(id *state.Identity) string { return fmt.Sprint(id.ID) }),
		changesOf(t, f.db, f.tables.Nodes, func(n *state.Node) string { return n.Name })
}

func changesOf[T any](t *testing.T, db *statedb.DB, table statedb.Table[T], name func(T) string) func() []string {
	wtxn := db.WriteTxn(table)
	it, err := table.Changes(wtxn)
	require.NoError(t, err)
	wtxn.Commit()
	next := func() (seen []string) {
		changes, _ := it.Next(db.ReadTxn())
		for c := range changes {
			if c.Deleted {
				seen = append(seen, "-"+name(c.Object))
			} else {
				seen = append(seen, "+"+name(c.Object))
			}
		}
		return seen
	}
	next() // what is there already
	return next
}

func TestRevoke(t *testing.T) {
	f := setup(t)
	f.config.Capabilities.ServiceExportsEnabled = &yes
	want := f.oneOfEach()
	stop := f.run()
	f.wants(want)
	f.ready() // a row is there before its resource is synced
	stop()

	f.handler.Revoke(t.Context())
	left := map[string]string{}
	for key, row := range want {
		if key != "service peer/shop/web" && key != "export peer/shop/web" {
			left[key] = row
		}
	}
	require.Equal(t, left, f.content())
	row := f.row()
	require.False(t, row.Ready)
	require.False(t, row.Resources[wire.Services].Synced)
	require.True(t, row.Resources[wire.Endpoints].Synced)

	f.run()
	f.wants(want)
	f.ready()
}

func TestRemove(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	delete(want, "export peer/shop/web")
	f.run()()
	stop := f.run()
	f.wants(want)
	stop()

	stopping, cancel := context.WithCancel(t.Context())
	cancel()
	f.handler.Remove(stopping)
	require.Equal(t, want, f.content(), "a process that stops leaves everything in force")

	f.handler.Remove(t.Context())
	require.Empty(t, f.content())
	require.Zero(t, f.tables.RemoteClusters.NumObjects(f.db.ReadTxn()))
	require.Empty(t, f.writer.CountByOrigin())
}

func TestRemoveBeforeRun(t *testing.T) {
	f := setup(t)
	f.handler.Revoke(t.Context())
	f.handler.Remove(t.Context())
	require.Empty(t, f.content())
	require.Zero(t, f.tables.RemoteClusters.NumObjects(f.db.ReadTxn()))
}

// TestClusterIDChanges with and without Reset: what was known goes, and what
// comes is checked against the new ID.
func TestClusterIDChanges(t *testing.T) {
	for _, reset := range []bool{true, false} {
		t.Run(fmt.Sprintf("reset=%t", reset), func(t *testing.T) {
			f := setup(t)
			want := f.oneOfEach()
			delete(want, "export peer/shop/web")
			stop := f.run()
			f.wants(want)
			stop()
			if reset {
				f.handler.Reset(t.Context())
				require.Empty(t, f.content())
			}

			f.config.ID = 4
			f.put(f.identityAt(4<<16+1, webLabels(peer)))
			f.run()
			f.wants(map[string]string{fmt.Sprint("identity ", 4<<16+1): webLabels(peer)})
			f.wantsRow(func(c *assert, row state.RemoteCluster) {
				require.Equal(c, map[wire.Reason]uint64{wire.ReasonIdentityRange: 3, wire.ReasonForeignCluster: 2}, row.Refused)
			})
			require.Len(t, f.writer.CountByOrigin(), 1)
		})
	}
}

func TestLayoutChanges(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	delete(want, "export peer/shop/web")
	stop := f.run()
	f.wants(want)
	stop()

	f.config.Capabilities.Cached = true
	f.put(f.identityAt(dbID, webLabels(peer)))
	stop = f.run()
	f.wants(map[string]string{fmt.Sprint("identity ", dbID): webLabels(peer)})
	stop()

	f.config.Capabilities.Cached = false
	f.run()
	f.wants(want)
}

func TestClosedClientEndsRun(t *testing.T) {
	f := setup(t)
	want := f.oneOfEach()
	delete(want, "export peer/shop/web")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.handler.Run(ctx, f.connection()) }()
	f.wants(want)
	require.NoError(t, f.client.Close())
	require.ErrorContains(t, <-done, "of cluster \"peer\"")
	require.Equal(t, want, f.content())
}
