// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// soon makes pauses of milliseconds.
func soon() wait.Backoff { return wait.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1} }

// TestIncompleteReplicaIsNotChosen: a node whose preferred replica has no more than a
// config reads the other, looks at the first as often as it may, and moves to it once
// it is complete.
func TestIncompleteReplicaIsNotChosen(t *testing.T) {
	filling, full := newWritten(t), newWritten(t)
	filling.announce(t, wire.CacheResources)
	full.announce(t, wire.CacheResources)
	full.fill(t)
	full.complete(t, wire.CacheResources)

	var dialled dials
	f, row := newFollowerOf(t, Preferring(filling.address, full.address), filling.url, full.url)
	f.dial, f.rebalance = dialled.dial, 2*time.Millisecond
	start(t, f, &complaints{})
	require.Eventually(t, func() bool { return row().Connected && row().Ready }, patience, tick)
	first := row()
	require.Equal(t, full.address, first.Backend)
	before := dialled.to(filling.address)
	require.Eventually(t, func() bool { return dialled.to(filling.address) > before+3 }, patience, tick)
	require.Equal(t, first.Backend, row().Backend)
	require.Equal(t, first.Since, row().Since)

	filling.fill(t)
	filling.complete(t, wire.CacheResources[1:])
	before = dialled.to(filling.address)
	require.Eventually(t, func() bool { return dialled.to(filling.address) > before+3 }, patience, tick)
	require.Equal(t, first.Since, row().Since, "one resource isn't there yet")
	filling.complete(t, wire.CacheResources)
	require.Eventually(t, func() bool { return row().Connected && row().Backend == filling.address }, patience, tick)
	require.Zero(t, row().Failures)
}

// TestIncompleteReplicaIsLeft: where no other replica answers, one that is filling is
// read, and left for one that is complete, if that comes first; even if the one that
// is filling is too busy to say how far it is.
func TestIncompleteReplicaIsLeft(t *testing.T) {
	var busy atomic.Bool
	filling, full := newWritten(t, grpc.ChainUnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if _, look := req.(*pb.TxnRequest); look && busy.Load() {
				return nil, status.Error(codes.DeadlineExceeded, "busy")
			}
			return handle(ctx, req)
		})), newWritten(t)
	filling.announce(t, wire.CacheResources)
	full.announce(t, wire.CacheResources)
	full.fill(t)
	full.complete(t, wire.CacheResources)

	dialled := dials{shut: map[string]bool{full.address: true}}
	f, row := newFollowerOf(t, Preferring(filling.address, full.address), filling.url, full.url)
	f.dial, f.filling = dialled.dial, soon
	start(t, f, &complaints{})
	filling.fill(t)
	require.Eventually(t, func() bool {
		return row().Backend == filling.address && row().Resources[wire.Services].Entries == 1
	}, patience, tick)
	require.False(t, row().Ready)
	busy.Store(true)
	before := dialled.to(full.address)
	require.Eventually(t, func() bool { return dialled.to(full.address) > before+3 }, patience, tick)
	require.Equal(t, filling.address, row().Backend)

	dialled.open(full.address)
	require.Eventually(t, func() bool { return row().Connected && row().Backend == full.address && row().Ready }, patience, tick)
	require.Zero(t, row().Failures)
}

// TestFillingReplicaIsKept: an agent whose replica became complete stays with it,
// and looks for no other any more.
func TestFillingReplicaIsKept(t *testing.T) {
	filling, other := newWritten(t), newWritten(t)
	filling.announce(t, wire.CacheResources)
	f, row := newFollowerOf(t, Preferring(other.address, filling.address), filling.url, other.url)
	f.filling = soon
	start(t, f, &complaints{})
	require.Eventually(t, func() bool { return row().Connected }, patience, tick)
	filling.fill(t)
	filling.complete(t, wire.CacheResources)
	require.Eventually(t, func() bool { return row().Ready }, patience, tick)
	require.Equal(t, filling.address, row().Backend)
}

// TestConfigIsWrittenAgain: the same config once more ends no session, and another
// one does; one that offers less than is in force is then refused.
func TestConfigIsWrittenAgain(t *testing.T) {
	w := newWritten(t)
	w.announce(t, wire.CacheResources)
	w.fill(t)
	w.complete(t, wire.CacheResources)
	var dialled dials
	f, row := newFollowerOf(t, "node", w.url)
	f.dial = dialled.dial
	start(t, f, &complaints{})
	require.Eventually(t, func() bool { return row().Connected && row().Ready }, patience, tick)
	before := dialled.to(w.address) // an attempt that came to nothing counts as well

	w.announce(t, wire.CacheResources)
	w.announce(t, wire.CacheResources)
	w.endpoint(t, "10.0.0.2")
	require.Eventually(t, func() bool { return row().Resources[wire.Endpoints].Entries == 2 }, patience, tick)
	require.Equal(t, before, dialled.to(w.address))

	w.put(t, wire.CacheConfigKey(ownCluster.Name), `{"id": 0, "resources": ["identities", "nodes", "endpoints", "services"], "more": true}`)
	require.Eventually(t, func() bool { return dialled.to(w.address) > before && row().Connected }, patience, tick)
	require.Zero(t, row().Failures)

	w.announce(t, slices.DeleteFunc(slices.Clone(wire.CacheResources), func(r wire.Resource) bool { return r == wire.Services }))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.False(c, row().Connected)
		require.Contains(c, row().LastError, "it offers no services, which are in force")
	}, patience, tick)
	require.Equal(t, 1, f.local.Counts().Services)
	w.announce(t, wire.CacheResources)
	require.Eventually(t, func() bool { return row().Connected }, patience, tick)
}

// TestConfigIsCompacted: the history from the look on may be gone when the watch is
// made anew.
func TestConfigIsCompacted(t *testing.T) {
	w := newWritten(t)
	w.announce(t, wire.CacheResources)
	f, _ := newFollowerOf(t, "node", w.url)
	require.NoError(t, f.directory.open(t.Context()))
	conn, err := f.connect(t.Context(), f.order()[0])
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.client.Close()) })
	w.fill(t)
	resp, err := w.client.Get(t.Context(), "x")
	require.NoError(t, err)
	_, err = w.client.Compact(t.Context(), resp.Header.Revision)
	require.NoError(t, err)

	watched := make(chan error, 1)
	go func() { watched <- f.watchConfig(t.Context(), conn) }()
	w.announce(t, wire.CacheResources)
	w.announce(t, wire.CacheResources[:3])
	require.ErrorIs(t, <-watched, errConfigChanged)
}

// TestResumeInSilence: an agent goes on where one before was, at a cache to which
// nothing is written meanwhile, and lists nothing.
func TestResumeInSilence(t *testing.T) {
	w := newWritten(t)
	w.announce(t, wire.CacheResources)
	w.fill(t)
	w.complete(t, wire.CacheResources)
	before, row := newFollowerOf(t, "node", w.url)
	stop := start(t, before, &complaints{})
	require.Eventually(t, func() bool { return row().Ready }, patience, tick)
	saved := before.local.Save()
	require.NotNil(t, saved)
	stop()
	// The last that is written: the agent has to be told that it isn't its.
	w.put(t, "elsewhere", "x")

	after, row := newFollowerOf(t, "node", w.url)
	for _, at := range saved.Positions() {
		var entries []ingest.Entry
		require.NoError(t, saved.Entries(at.Resource, func(e ingest.Entry) error {
			e.Value = slices.Clone(e.Value)
			entries = append(entries, e)
			return nil
		}))
		require.NoError(t, after.local.Restore(at.Resource, entries))
		require.NoError(t, after.local.Resume(at))
	}
	start(t, after, &complaints{})
	require.Eventually(t, func() bool { return row().Ready }, patience, tick)
	want := ingest.Start{Start: etcd.Start{Resumed: true}, Restored: 1}
	require.Equal(t, map[wire.Resource]ingest.Start{
		wire.Identities: want, wire.Nodes: want, wire.Endpoints: want, wire.Services: want,
	}, after.local.Starts())
}

// TestOldTablesSayNothingOfReplicas: what an earlier process knew of the cache's own
// Service doesn't replace what the API server says now; what the cache says does.
func TestOldTablesSayNothingOfReplicas(t *testing.T) {
	w := newWritten(t)
	w.announce(t, wire.CacheResources)
	w.fill(t)
	w.complete(t, wire.CacheResources)
	f, row := newFollowerOf(t, "node", w.url)
	require.NoError(t, f.local.Restore(wire.Services, []ingest.Entry{
		{Key: wire.ServiceKey("kube-system", "cache"), Value: []byte(ownService(t, "10.0.0.7:2379"))}}))
	require.NoError(t, f.directory.open(t.Context()))
	own, ok := parseService("https://cache.kube-system.svc")
	require.True(t, ok)
	own.backends = reading.ServiceBackends{PortName: "etcd", Addresses: []string{"10.0.0.8:2379"}}
	conn, err := f.connect(t.Context(), f.order()[0])
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.client.Close()) })
	f.directory.named = []*service{own}
	f.follow(conn)
	require.Equal(t, []string{"10.0.0.8:2379"}, own.backends.Addresses)

	f.directory.named = nil
	stop := start(t, f, &complaints{})
	require.Eventually(t, func() bool { return row().Ready }, patience, tick)
	stop()
	f.directory.named = []*service{own}
	f.follow(conn)
	require.Equal(t, []string{"10.0.0.9:2379"}, own.backends.Addresses)
}
