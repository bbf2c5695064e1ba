// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"golang.org/x/time/rate"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// statusInterval is the least time between two writes of a cluster's row.
	statusInterval = 200 * time.Millisecond
	// problemInterval is how often a cluster in which nothing changes is looked
	// at for what may keep it from changing.
	problemInterval = 2 * time.Second
	// logInterval and logBurst bound what one cluster's nonsense may log.
	logInterval, logBurst = 10 * time.Second, 10
)

// status is what a cluster counts for its row; guarded by cluster.mu.
type status struct {
	refused    map[wire.Reason]uint64
	lastEvent  time.Time
	limit      *rate.Limiter
	suppressed int
}

func newStatus() status {
	return status{refused: make(map[wire.Reason]uint64), limit: rate.NewLimiter(rate.Every(logInterval), logBurst)}
}

// refuse counts a refusal, and logs it unless there were many.
func (s *status) refuse(log *slog.Logger, err error) {
	var refusal *wire.Refusal
	if !errors.As(err, &refusal) {
		return
	}
	s.refused[refusal.Reason]++
	if !s.limit.Allow() {
		s.suppressed++
		return
	}
	// The refusal names the key, shortened: a hostile one may be long.
	log.Warn("Refused a key of a remote cluster", "resource", refusal.Resource,
		"reason", refusal.Reason, "error", refusal, "suppressed", s.suppressed)
	s.suppressed = 0
}

// report writes the row when something changed, until ctx ends.
func (c *cluster) report(ctx context.Context) {
	look := time.NewTicker(problemInterval)
	defer look.Stop()
	for {
		c.writeRow()
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusInterval):
		}
		for changed := false; !changed; {
			select {
			case <-ctx.Done():
				return
			case <-c.dirty:
				changed = true
			case <-look.C:
				changed = c.problem() != c.reported
			}
		}
	}
}

// problem is what keeps this cluster's data from being up to date although its
// etcd answers.
func (c *cluster) problem() string {
	for _, r := range c.replicas {
		if r.reader == nil || !r.enabled {
			continue
		}
		if err := r.reader.LastError(); err != nil {
			return err.Error()
		}
	}
	if stats := c.mesh.writer.Stats(); stats.LastError != "" {
		return fmt.Sprintf("%d keys wait to be written to the local etcd: %s", stats.Pending, stats.LastError)
	}
	return ""
}

// writeRow writes what this room knows into the row in remote-clusters. The
// connection's part of it is remote's.
func (c *cluster) writeRow() {
	c.mu.Lock()
	ready := len(c.replicas) > 0
	resources := make(map[wire.Resource]state.ResourceState, len(c.replicas))
	for _, r := range c.replicas {
		if r.reader == nil {
			ready = false
			continue
		}
		resources[r.resource] = state.ResourceState{Enabled: r.enabled, Synced: r.enabled && r.complete, Entries: r.reader.Len() - len(r.admission.refused)}
		// The additions of later schemas may never come.
		ready = ready && (r.complete || r.resource == wire.EndpointSlices)
	}
	refused, lastEvent := maps.Clone(c.status.refused), c.status.lastEvent
	c.mu.Unlock()
	c.reported = c.problem()

	tx := c.mesh.state.Begin()
	tx.UpdateRemoteCluster(c.name, func(row *state.RemoteCluster) {
		row.Resources, row.Ready, row.Refused, row.Problem = resources, ready, refused, c.reported
		if lastEvent.After(row.LastEvent) {
			row.LastEvent = lastEvent
		}
	})
	tx.Commit()
}

func (c *cluster) removeRow() {
	tx := c.mesh.state.Begin()
	tx.DeleteRemoteCluster(c.name)
	tx.Commit()
}
