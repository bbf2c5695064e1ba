// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience, tick = time.Minute, 5 * time.Millisecond

// fixture is a source's etcd and a KVStoreMesh on an etcd of its own.
type fixture struct {
	t             testing.TB
	source, local *etcd.Client
	server        *etcd.Server
	mesh          *kvStoreMesh
	db            *statedb.DB
	rows          statedb.Table[*state.RemoteCluster]
	stop          func()
	ttl           time.Duration // of the mesh's leases; 0 is a minute
	log           *slog.Logger  // the mesh's; nil is one that says nothing
	address       string        // at which the mesh has the local etcd; empty is the server's
}

func startEtcd(t testing.TB) (*etcd.Server, *etcd.Client) {
	server, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server, connect(t, server.URL(), time.Minute)
}

func connect(t testing.TB, url string, ttl time.Duration) *etcd.Client {
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{url}, LeaseTTL: ttl})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func newFixture(t testing.TB, edit func(*Config)) *fixture {
	f := &fixture{t: t}
	_, f.source = startEtcd(t)
	f.server, f.local = startEtcd(t)
	f.startMesh(edit)
	return f
}

// startMesh starts a KVStoreMesh on the local etcd, as a process would.
func (f *fixture) startMesh(edit func(*Config)) {
	config := DefaultConfig
	config.DrainGracePeriod = time.Millisecond
	if edit != nil {
		edit(&config)
	}
	log := cmp.Or(f.log, hivetest.Logger(f.t, hivetest.LogLevel(slog.LevelError+1)))
	f.db = statedb.New()
	stateWriter, err := state.NewWriter(f.db)
	require.NoError(f.t, err)
	f.rows = stateWriter.Tables().RemoteClusters
	client := connect(f.t, cmp.Or(f.address, f.server.URL()), cmp.Or(f.ttl, time.Minute))
	writer := etcd.NewWriter(log, client)
	f.mesh = newKVStoreMesh(log, config, wire.ClusterInfo{ID: 9, Name: "local", MaxConnectedClusters: 255}, client, writer, stateWriter)
	f.mesh.relistJitter = -1
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(f.t, writer.Run(ctx)) })
	f.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	f.t.Cleanup(f.stop)
}

// run runs a cluster's Handler on a connection, until stop.
func (f *fixture) run(h remote.Handler, raw string) (stop func()) {
	config, err := wire.ParseClusterConfig([]byte(raw))
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := h.Run(ctx, remote.Connection{Cluster: "c", Client: f.source, Config: config, RawConfig: []byte(raw)})
		assert.True(f.t, err == nil || ctx.Err() != nil, "%v", err)
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	f.t.Cleanup(stop)
	return stop
}

func (f *fixture) put(kv ...string) {
	f.t.Helper()
	for i := 0; i < len(kv); i += 2 {
		_, err := f.source.Etcd().Put(f.t.Context(), kv[i], kv[i+1])
		require.NoError(f.t, err)
	}
}

// content is what the local etcd has below a prefix, with times left out.
func (f *fixture) content(t assert.TestingT, prefix string) map[string]string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := f.local.Etcd().Get(ctx, prefix, clientv3.WithPrefix())
	if !assert.NoError(t, err) {
		return nil
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return out
}

func (f *fixture) eventually(prefix string, want map[string]string) {
	f.t.Helper()
	require.EventuallyWithT(f.t, func(c *assert.CollectT) {
		require.Equal(c, want, f.content(c, prefix))
	}, patience, tick)
}

func (f *fixture) eventuallySynced() {
	f.t.Helper()
	require.EventuallyWithT(f.t, func(c *assert.CollectT) {
		row, _, ok := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
		require.True(c, ok && row.Ready)
		canaries := f.content(c, "cilium/synced/c/")
		for _, r := range wire.Resources {
			if r != wire.EndpointSlices {
				require.Contains(c, canaries, strings.TrimPrefix(wire.CanaryKey(r, "c", true), "cilium/synced/c/"))
			}
		}
	}, patience, tick)
}

const (
	plainConfig  = `{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true},"future":{"a":[1.50]}}`
	cachedConfig = `{"id":1,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,"serviceExportsEnabled":true}}`
	oldConfig    = `{"id":1}` // no canaries, no service exports
)

// fill writes one object of each kind, in a layout.
func (f *fixture) fill(cached, canaries bool) {
	for _, r := range wire.Resources {
		f.put(wire.Prefix(r, "c", cached)+keyOf(r), "value of "+string(r))
		if canaries {
			f.put(wire.CanaryKey(r, "c", cached), "now")
		}
	}
}

func keyOf(r wire.Resource) string {
	switch r {
	case wire.Endpoints:
		return "10.0.0.1"
	case wire.Identities:
		return "65537"
	case wire.Nodes:
		return "node1"
	default:
		return "ns/name"
	}
}

func cacheOf(resources ...wire.Resource) map[string]string {
	out := map[string]string{}
	for _, r := range resources {
		out[strings.TrimPrefix(wire.CachePrefix(r, "c")+keyOf(r), wire.CacheRoot)] = "value of " + string(r)
	}
	return out
}

// TestReplicates carries every kind of resource from each layout, by prefix, and
// nothing else.
func TestReplicates(t *testing.T) {
	for name, test := range map[string]struct {
		config           string
		cached, canaries bool
		exports          bool
	}{
		"state layout":     {plainConfig, false, true, true},
		"cached layout":    {cachedConfig, true, true, true},
		"without canaries": {oldConfig, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			f.fill(test.cached, test.canaries)
			// Never replicated: the allocator's keys, other clusters, what isn't known.
			f.put("cilium/state/identities/v1/value/k8s:app=x;/c", "65537",
				wire.Prefix(wire.Nodes, "other", test.cached)+"node1", "x", "cilium/state/unknown/v1/c/x", "x")
			f.run(newCluster(f.mesh, "c"), test.config)
			f.eventuallySynced()
			want := cacheOf(wire.Resources...)
			if !test.exports {
				delete(want, "serviceexports/v1/c/ns/name")
			}
			f.eventually(wire.CacheRoot, want)

			f.put(wire.Prefix(wire.Nodes, "c", test.cached)+"node1", "changed", wire.Prefix(wire.Nodes, "c", test.cached)+"node2", "new")
			_, err := f.source.Etcd().Delete(t.Context(), wire.Prefix(wire.Endpoints, "c", test.cached)+"10.0.0.1")
			require.NoError(t, err)
			want["nodes/v1/c/node1"], want["nodes/v1/c/node2"] = "changed", "new"
			delete(want, "ip/v1/c/10.0.0.1")
			f.eventually(wire.CacheRoot, want)
		})
	}
}

// TestClusterConfigIsKept publishes the config with what it doesn't know.
func TestClusterConfigIsKept(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(f.content(t, wire.ClusterConfigPrefix)["c"]), &got))
	capabilities := got["capabilities"].(map[string]any)
	require.Equal(t, true, capabilities["cached"])
	require.Contains(t, f.content(t, wire.ClusterConfigPrefix)["c"], `"future":{"a":[1.50]}`)
}

// TestRestartWritesNothing starts over with nothing changed.
func TestRestartWritesNothing(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	stop := f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	stop()
	f.stop()
	before, err := f.local.Etcd().Get(t.Context(), "x")
	require.NoError(t, err)
	f.startMesh(nil)
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	after, err := f.local.Etcd().Get(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, before.Header.Revision, after.Header.Revision)
}

// TestRestartFindsTheDifference has things change while nobody looked.
func TestRestartFindsTheDifference(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	stop := f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	stop()
	f.stop()
	_, err := f.source.Etcd().Delete(t.Context(), "cilium/state/nodes/v1/c/node1")
	require.NoError(t, err)
	f.put("cilium/state/nodes/v1/c/node2", "new")
	f.startMesh(nil)
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventually("cilium/cache/nodes/v1/c/", map[string]string{"node2": "new"})
}

// TestLayoutChanges follows a source that a KVStoreMesh is put in front of: what
// stays the same isn't written again.
func TestLayoutChanges(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	f.fill(true, true)
	f.put("cilium/state/nodes/v1/c/only-state", "x", "cilium/cache/nodes/v1/c/only-cache", "x")
	h := newCluster(f.mesh, "c")
	stop := f.run(h, plainConfig)
	f.eventuallySynced()
	stop()
	now, err := f.local.Etcd().Get(t.Context(), "cilium/")
	require.NoError(t, err)
	watch := f.local.Etcd().Watch(t.Context(), "cilium/cache/", clientv3.WithPrefix(), clientv3.WithRev(now.Header.Revision+1))
	f.run(h, cachedConfig)
	f.eventually("cilium/cache/nodes/v1/c/", map[string]string{"node1": "value of nodes", "only-cache": "x"})
	for seen := 0; seen < 2; {
		for _, ev := range (<-watch).Events {
			require.Contains(t, string(ev.Kv.Key), "/only-", "only the difference is written")
			seen++
		}
	}
}

func TestRevokeDropsServicesOnly(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	h := newCluster(f.mesh, "c")
	stop := f.run(h, plainConfig)
	f.eventuallySynced()
	stop()
	h.Revoke(t.Context())
	f.eventually(wire.CacheRoot, cacheOf(wire.Endpoints, wire.Identities, wire.Nodes, wire.EndpointSlices))
	f.run(h, plainConfig)
	f.eventually(wire.CacheRoot, cacheOf(wire.Resources...))
}

func TestRemoveAndReset(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	f.put("unrelated", "x")
	h := newCluster(f.mesh, "c")
	stop := f.run(h, plainConfig)
	f.eventuallySynced()
	stop()
	h.Reset(t.Context())
	require.Empty(t, f.content(t, wire.CacheRoot))
	stop = f.run(h, plainConfig)
	f.eventually(wire.CacheRoot, cacheOf(wire.Resources...))
	stop()
	h.Remove(t.Context())
	require.Empty(t, f.content(t, "cilium/"))
	require.Zero(t, f.rows.NumObjects(f.db.ReadTxn()))
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventually(wire.CacheRoot, cacheOf(wire.Resources...))
}

// TestRemoveInterrupted is stopped during the grace period; the next process,
// which has no configuration of the cluster, removes the rest.
func TestRemoveInterrupted(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.DrainGracePeriod = time.Hour })
	f.fill(false, true)
	h := newCluster(f.mesh, "c")
	stop := f.run(h, plainConfig)
	f.eventuallySynced()
	stop()
	ctx, cancel := context.WithCancel(t.Context())
	removed := make(chan struct{})
	go func() { h.Remove(ctx); close(removed) }()
	f.eventually(wire.ClusterConfigPrefix, map[string]string{})
	cancel()
	<-removed
	require.NotEmpty(t, f.content(t, wire.CacheRoot))
	f.stop()
	f.startMesh(nil)
	health, _ := cell.NewSimpleHealth()
	f.mesh.drainOrphans(t.Context(), health, func() []string { return []string{"another"} })
	require.Empty(t, f.content(t, "cilium/"))
}

// TestOrphanComesBack leaves alone what is configured again.
func TestOrphanComesBack(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	stop := f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	stop()
	f.stop()
	f.startMesh(nil)
	asked := 0
	health, _ := cell.NewSimpleHealth()
	f.mesh.drainOrphans(t.Context(), health, func() []string {
		if asked++; asked == 1 {
			return nil
		}
		return []string{"c"}
	})
	require.Len(t, f.content(t, wire.CacheRoot), len(wire.Resources))
}

// TestRefusals takes the good and leaves the bad, and says so.
func TestRefusals(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxKeysPerCluster = 10 })
	f.fill(false, true)
	large := strings.Repeat("x", wire.MaxValueBytes+1)
	f.put("cilium/state/ip/v1/default/not-an-address", "x", "cilium/state/identities/v1/id/999999", "x",
		"cilium/state/nodes/v1/c/large", large, "cilium/state/services/v1/c/too/many/parts", "x")
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	f.eventually(wire.CacheRoot, cacheOf(wire.Resources...))
	refused := func(reason wire.Reason, n uint64) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			row, _, ok := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
			require.True(c, ok)
			require.Equal(c, n, row.Refused[reason], reason)
		}, patience, tick)
	}
	refused(wire.ReasonBadKey, 2)
	refused(wire.ReasonIdentityRange, 1)
	refused(wire.ReasonTooLarge, 1)

	// Six of ten keys are taken; four more fit, and the rest when there is room.
	for i := range 8 {
		f.put(fmt.Sprintf("cilium/state/nodes/v1/c/more%d", i), "x")
	}
	refused(wire.ReasonTooMany, 4)
	require.Len(t, f.content(t, wire.CacheRoot), 10)
	_, err := f.source.Etcd().Delete(t.Context(), "cilium/state/nodes/v1/c/more0", clientv3.WithRange("cilium/state/nodes/v1/c/more4"))
	require.NoError(t, err)
	f.eventually("cilium/cache/nodes/v1/c/", map[string]string{"node1": "value of nodes", "more4": "x", "more5": "x", "more6": "x", "more7": "x"})

	// A good value in place of a bad one is taken; a bad one for a good one isn't.
	f.put("cilium/state/nodes/v1/c/large", "small", "cilium/state/nodes/v1/c/more4", large)
	f.eventually("cilium/cache/nodes/v1/c/", map[string]string{"node1": "value of nodes", "large": "small", "more5": "x", "more6": "x", "more7": "x"})
}

// TestLocalEtcdLosesKeys has everything, config and canaries included, written
// again from the source.
func TestLocalEtcdLosesKeys(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	leases, err := f.local.Etcd().Leases(t.Context())
	require.NoError(t, err)
	for _, lease := range leases.Leases {
		_, err := f.local.Etcd().Revoke(t.Context(), lease.ID)
		require.NoError(t, err)
	}
	// A write finds out at once; an idle mesh by its keep-alives.
	f.put("cilium/state/nodes/v1/c/node2", "new")
	want := cacheOf(wire.Resources...)
	want["nodes/v1/c/node2"] = "new"
	f.eventually(wire.CacheRoot, want)
	f.eventuallySynced()
	require.Contains(t, f.content(t, wire.ClusterConfigPrefix), "c")
}

// TestPageIsTakenWhenTheRunEnds ends a Run while a page waits to be admitted.
// The Reader has noted the page as delivered, so that nobody brings it again.
func TestPageIsTakenWhenTheRunEnds(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	_, local := startEtcd(t)
	writer := etcd.NewWriter(log, local) // which doesn't run: what is pending stays
	stateWriter, err := state.NewWriter(statedb.New())
	require.NoError(t, err)
	mesh := newKVStoreMesh(log, DefaultConfig, wire.ClusterInfo{ID: 9, Name: "local", MaxConnectedClusters: 255}, local, writer, stateWriter)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	busy := writer.Scope(etcd.ScopeConfig{Prefix: "busy/"})
	for i := 0; writer.Admit(ctx) == nil; i++ {
		busy.Apply([]etcd.Op{{Key: strconv.Itoa(i), Value: make([]byte, 1<<20)}})
	}
	r := newReplica(newCluster(mesh, "c"), wire.Nodes)
	r.follow(layout{clusterID: 1}, wire.NewValidator("c", 1, 255), &budget{max: 10})
	before := writer.Stats().Pending
	r.OnBatch(ctx, etcd.Batch{Events: []etcd.Event{{Key: "node1", Value: []byte("v"), New: true}}, Listing: true})
	require.Equal(t, before+1, writer.Stats().Pending)
}

// TestRestartWhileTheSourceIsAway restarts KVStoreMesh when a cluster can't be
// reached: what is known of it outlives the leases of the process that wrote it.
func TestRestartWhileTheSourceIsAway(t *testing.T) {
	const ttl = 2 // seconds; etcd's shortest is about that
	f := &fixture{t: t, ttl: ttl * time.Second}
	_, f.source = startEtcd(t)
	f.server, f.local = startEtcd(t)
	f.startMesh(nil)
	f.fill(false, true)
	stop := f.run(newCluster(f.mesh, "c"), plainConfig)
	f.eventuallySynced()
	stop()
	before := f.content(t, "cilium/")
	f.stop()

	f.startMesh(nil)
	require.NoError(t, f.mesh.adoptLeases(t.Context()))
	// What the local exporter wrote, which has died, isn't ours to keep. When it
	// is gone, ours would be, too.
	lease, err := f.local.Etcd().Grant(t.Context(), 2*ttl)
	require.NoError(t, err)
	exported := []string{"cilium/cluster-config/local", "cilium/state/nodes/v1/local/n", "cilium/synced/local/cilium/state/nodes/v1"}
	for _, key := range exported {
		_, err := f.local.Etcd().Put(t.Context(), key, "v", clientv3.WithLease(lease.ID))
		require.NoError(t, err)
	}
	require.NoError(t, f.mesh.adoptLeases(t.Context()))
	f.eventually("cilium/", before)
	require.NotEmpty(t, before)
}

// TestStartBeforeTheLocalEtcd starts a KVStoreMesh whose etcd comes up later, with what an
// earlier process has written, some of it of a cluster that is gone: it waits, and says so,
// and then every lease is kept and the rest removed.
func TestStartBeforeTheLocalEtcd(t *testing.T) {
	f := &fixture{t: t}
	f.server, f.local = startEtcd(t)
	for i := range 3 {
		lease, err := f.local.Etcd().Grant(t.Context(), 600)
		require.NoError(t, err)
		for _, cluster := range []string{"c", "gone"} {
			_, err = f.local.Etcd().Put(t.Context(), fmt.Sprintf("%sn%d", wire.CachePrefix(wire.Nodes, cluster), i), "v", clientv3.WithLease(lease.ID))
			require.NoError(t, err)
			_, err = f.local.Etcd().Put(t.Context(), wire.CanaryKey(wire.Resources[i], cluster, true), "v", clientv3.WithLease(lease.ID))
			require.NoError(t, err)
		}
	}
	r, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(r.Close)
	var log bytes.Buffer // read when all that logs has ended
	f.log, f.address = slog.New(slog.NewTextHandler(&log, nil)), "http://"+r.Address()
	f.startMesh(nil)

	health, says := cell.NewSimpleHealth()
	var jobs sync.WaitGroup
	jobs.Go(func() { assert.NoError(t, f.mesh.keepLeases(t.Context(), health.NewScope("leases"))) })
	jobs.Go(func() {
		f.mesh.drainOrphans(t.Context(), health.NewScope("orphans"), func() []string { return []string{"c"} })
	})
	level := func(job string) (level cell.Level) {
		if child := says.GetChild(job); child != nil {
			child.Lock()
			defer child.Unlock()
			level = child.Level
		}
		return level
	}
	for _, job := range []string{"leases", "orphans"} {
		require.Eventually(t, func() bool { return level(job) == cell.StatusDegraded }, patience, tick)
	}
	r.Aim(strings.TrimPrefix(f.server.URL(), "http://"))
	jobs.Wait()
	for _, job := range []string{"leases", "orphans"} {
		require.Equal(t, cell.StatusOK, level(job))
	}
	require.Equal(t, 3, f.mesh.writer.Stats().Leases)
	require.Len(t, f.content(t, "cilium/"), 6, "what is left is of the other cluster")
	f.stop()
	require.NotContains(t, log.String(), "level=ERROR")
	require.Contains(t, log.String(), "Reading from the local etcd failed, trying again")
}

// TestProblemIsSaid has the source's etcd refuse to be read, which is no matter
// of the connection.
func TestProblemIsSaid(t *testing.T) {
	f := newFixture(t, nil)
	f.fill(false, true)
	auth := f.source.Etcd().Auth
	_, err := auth.UserAdd(t.Context(), "root", "secret")
	require.NoError(t, err)
	_, err = auth.UserGrantRole(t.Context(), "root", "root")
	require.NoError(t, err)
	_, err = auth.AuthEnable(t.Context())
	require.NoError(t, err)
	f.run(newCluster(f.mesh, "c"), plainConfig)
	problem := func() string {
		row, _, _ := f.rows.Get(f.db.ReadTxn(), state.RemoteClusterByName("c"))
		if row == nil {
			return ""
		}
		return row.Problem
	}
	require.Eventually(t, func() bool { return strings.Contains(problem(), "cilium/state/") }, patience, tick)

	root, err := clientv3.New(clientv3.Config{Endpoints: f.source.Endpoints(), Username: "root", Password: "secret"})
	require.NoError(t, err)
	defer root.Close()
	_, err = root.AuthDisable(t.Context())
	require.NoError(t, err)
	f.eventuallySynced()
	require.Eventually(t, func() bool { return problem() == "" }, patience, tick)
}
