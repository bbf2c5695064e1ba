// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// TestFence has a Writer lose the lock under which it writes.
func TestFence(t *testing.T) {
	server := startServer(t, ServerConfig{})
	c := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}, LeaseTTL: time.Minute})
	session, err := concurrency.NewSession(c.Etcd())
	require.NoError(t, err)
	lock := concurrency.NewMutex(session, "lock")
	require.NoError(t, lock.Lock(t.Context()))

	fence := &Fence{}
	w := newWriter(hivetest.Logger(t, hivetest.LogLevel(slog.LevelError)), c, WriterOptions{Fence: fence})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	scope := w.Scope(ScopeConfig{Prefix: "scope/", Lease: true})
	has := func(key string) bool {
		value, err := c.Get(t.Context(), "scope/"+key)
		require.NoError(t, err)
		return value != nil
	}
	blocked := func() bool { return w.Stats().LastError == ErrFenced.Error() }

	scope.Apply([]Op{{Key: "a", Value: []byte("1")}})
	require.Eventually(t, blocked, time.Minute, time.Millisecond, "the lock isn't held yet")
	require.False(t, has("a"))
	fence.Hold(lock.IsOwner())
	require.NoError(t, scope.Barrier(t.Context()))
	require.True(t, has("a"))

	require.NoError(t, session.Close()) // as if its lease had run out
	scope.Apply([]Op{{Key: "a", Delete: true}, {Key: "b", Value: []byte("1")}})
	require.Eventually(t, blocked, time.Minute, time.Millisecond)
	require.ErrorIs(t, w.deleteRange(t.Context(), "scope/"), ErrFenced)
	require.True(t, has("a"))
	require.False(t, has("b"))
}
