// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
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
	replica := newWritten(t,
		bound.ServerOption(),
		grpc.ChainUnaryInterceptor(
			func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				if r, ok := req.(*pb.RangeRequest); ok && string(r.Key) == blocked {
					<-hold
				}
				return handle(ctx, req)
			}))
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
		f, row := newFollowerOf(t, fmt.Sprintf("node-%d", i), replica.url)
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
