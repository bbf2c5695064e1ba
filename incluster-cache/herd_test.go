// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// herd is how many followers come together.
const herd = 30

// complaints is a cell.Health that notes what was wrong.
type complaints struct {
	cell.Health

	mu    sync.Mutex
	notes []string
}

func (c *complaints) OK(string) {}

func (c *complaints) Degraded(message string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, fmt.Sprintf("%s: %v", message, err))
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.notes)
}

// TestHerd: agents that come together at a replica which serves as many lists as it
// may wait for theirs, and take nothing for a failure: not their first look either.
func TestHerd(t *testing.T) {
	const limit, blocked = 2, "blocked"
	bound, hold := etcd.NewListBound(limit), make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0",
		GRPC: []grpc.ServerOption{bound.ServerOption(), grpc.ChainUnaryInterceptor(
			func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				if r, ok := req.(*pb.RangeRequest); ok && string(r.Key) == blocked {
					<-hold
				}
				return handle(ctx, req)
			})}})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	replica := newReplica(t, server.URL())
	replica.announce(t, wire.CacheResources)
	replica.complete(t, wire.CacheResources)

	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(release)
	for range limit {
		running.Go(func() {
			if _, err := replica.client.Get(context.Background(), blocked, clientv3.WithPrefix()); err != nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return bound.Stats().Open == limit }, patience, tick)

	var (
		health complaints
		rows   []func() *state.Datastore
	)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for i := range herd {
		f, row := newFollowerOf(t, fmt.Sprintf("node-%d", i), server.URL())
		rows = append(rows, row)
		running.Go(func() {
			if err := f.run(ctx, &health); err != nil {
				t.Error(err)
			}
		})
	}
	for _, row := range rows {
		require.Eventually(t, func() bool { return row().Connected }, patience, tick)
	}
	require.Eventually(t, func() bool { return bound.Stats().Postponed >= herd }, patience, tick)
	release()
	for _, row := range rows {
		require.Eventually(t, func() bool { return row().Ready }, patience, tick)
		require.Zero(t, row().Failures)
	}
	require.Empty(t, health.all())
}

// written is a replica of the cache, with what a test writes.
type written struct {
	client *clientv3.Client
}

func newReplica(t *testing.T, url string) written {
	t.Helper()
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{url}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return written{client.Etcd()}
}

// announce writes what the cache says of itself.
func (w written) announce(t *testing.T, resources []wire.Resource) {
	t.Helper()
	config, err := wire.MarshalCacheConfig(wire.CacheConfig{Resources: resources})
	require.NoError(t, err)
	w.put(t, wire.CacheConfigKey(ownCluster.Name), string(config))
}

// complete writes the canaries.
func (w written) complete(t *testing.T, resources []wire.Resource) {
	t.Helper()
	for _, r := range resources {
		w.put(t, wire.CanaryKey(r, ownCluster.Name, false), "2026-01-01T00:00:00Z")
	}
}

func (w written) put(t *testing.T, key, value string) {
	t.Helper()
	_, err := w.client.Put(t.Context(), key, value)
	require.NoError(t, err)
}

// newFollowerOf makes a follower of replicas at these addresses, with tables of its
// own, and what reads its row.
func newFollowerOf(t *testing.T, node string, urls ...string) (*follower, func() *state.Datastore) {
	t.Helper()
	log, db := slog.New(slog.DiscardHandler), statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	f := &follower{
		log: log, cluster: ownCluster, node: node, dial: dialAddress,
		source: newSource(log, writer, ownCluster, time.Now()),
		local: ingest.NewLocal(ingest.Options{
			Log: log, Writer: writer, Local: ownCluster, RelistJitter: 10 * time.Millisecond,
		}),
		directory: &directory{log: log, cluster: ownCluster, backoff: newAskBackoff(),
			etcd: etcd.ClientConfig{Endpoints: urls}, db: db, services: writer.Tables().Services},
	}
	return f, func() *state.Datastore {
		row, _, _ := writer.Tables().Datastore.Get(db.ReadTxn(), state.TheDatastore())
		return row
	}
}
