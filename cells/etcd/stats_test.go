// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestWriterStats follows one Writer: before it runs its queue is behind, afterwards
// nothing is, and what it did was told.
func TestWriterStats(t *testing.T) {
	w := NewWriter(slog.New(slog.DiscardHandler), clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL()))
	var (
		mu      sync.Mutex
		commits []Commit
	)
	w.OnCommit(func(c Commit) {
		mu.Lock()
		defer mu.Unlock()
		commits = append(commits, c)
	})
	scope := w.Scope(ScopeConfig{Prefix: "a/", Canary: "canary", CanaryValue: func() []byte { return nil }, Lease: true})
	require.NoError(t, scope.Load(t.Context()))
	of := func() ScopeStats {
		for _, s := range w.ScopeStats() {
			if s.Prefix == "a/" {
				return s
			}
		}
		return ScopeStats{}
	}

	began := time.Now()
	scope.Apply([]Op{{Key: "1", Value: []byte("one")}, {Key: "2", Value: []byte("two")}, {Key: "2", Value: []byte("zwei")}})
	require.Eventually(t, func() bool { return w.Stats().Lag > 0 }, patience, tick)
	require.LessOrEqual(t, w.Stats().Lag, time.Since(began))
	require.Equal(t, ScopeStats{Prefix: "a/", Pending: 2, Loaded: true}, of())

	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = w.Run(ctx) }) // nil
	require.NoError(t, scope.Barrier(t.Context()))
	require.False(t, of().Complete, "nobody has said so")
	scope.Complete()
	require.Eventually(t, func() bool { return of() == ScopeStats{Prefix: "a/", Keys: 2, Loaded: true, Complete: true} }, patience, tick)
	require.Eventually(t, func() bool { return w.Stats().Lag == 0 }, patience, tick)
	require.Equal(t, 1, w.Stats().Leases)

	mu.Lock()
	defer mu.Unlock()
	require.Len(t, commits, 2, "the keys and the canary")
	require.Equal(t, []string{"a/"}, commits[0].Puts)
	require.Empty(t, commits[0].Deletes)
	require.NoError(t, commits[0].Err)
	require.Positive(t, commits[0].Waited)
	require.Positive(t, commits[0].Took)
	require.Equal(t, []string{""}, commits[1].Puts)
}
