// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Startup knows whether the clusters that were configured at start have been
// taken in. Until then the tables are incomplete, and whoever removes from the
// datapath what isn't in them would cut connections that work.
//
// Clusters count from when their Handler is made until they are ready for the
// first time, or removed. Those that come after Complete don't count.
type Startup struct {
	mu      sync.Mutex
	pending map[string]struct{}
	listed  bool
	settled chan struct{}
}

// NewStartup makes a Startup that knows of no cluster.
func NewStartup() *Startup {
	return &Startup{pending: map[string]struct{}{}, settled: make(chan struct{})}
}

// Complete says that every cluster configured at start has its Handler. It may
// be called again.
func (s *Startup) Complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed = true
	s.check()
}

// Wait waits until all clusters are taken in, at most for timeout, or until ctx
// ends, whose error it returns. It returns the names of those that are missing.
// It is for one caller.
func (s *Startup) Wait(ctx context.Context, timeout time.Duration) (missing []string, err error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-s.settled:
		return nil, nil
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pending)), nil
}

func (s *Startup) expect(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.listed {
		s.pending[cluster] = struct{}{}
	}
}

func (s *Startup) settle(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, cluster)
	s.check()
}

// check is called with mu held.
func (s *Startup) check() {
	if !s.listed || len(s.pending) > 0 {
		return
	}
	select {
	case <-s.settled:
	default:
		close(s.settled)
	}
}
