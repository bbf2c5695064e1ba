// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
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

// newStartup makes a Startup that knows of no cluster.
func newStartup() *Startup {
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

// Wait waits until all clusters are taken in. If ctx ends before, its error is
// wrapped in one that names those that are missing.
func (s *Startup) Wait(ctx context.Context) error {
	select {
	case <-s.settled:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.listed {
		return fmt.Errorf("waiting for the list of remote clusters: %w", ctx.Err())
	}
	return fmt.Errorf("waiting for remote clusters %q: %w", slices.Sorted(maps.Keys(s.pending)), ctx.Err())
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
