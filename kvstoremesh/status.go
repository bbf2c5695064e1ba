// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"fmt"
	"time"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// statusInterval is the least time between two writes of a cluster's row.
	statusInterval = 200 * time.Millisecond
	// problemInterval is how often a cluster in which nothing changes is looked
	// at for what may keep it from changing.
	problemInterval = 2 * time.Second
)

// status is what a cluster counts for its row; guarded by cluster.mu.
type status struct {
	*remote.Refusals
	lastEvent time.Time
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
		resources[r.resource] = state.ResourceState{Enabled: r.enabled, Synced: r.enabled && r.complete,
			Entries: r.scope.Held(), Skipped: r.admission.skipped.len(), Lists: r.reader.Lists()}
		// The additions of later schemas may never come.
		ready = ready && (r.complete || r.resource == wire.EndpointSlices)
	}
	refused, lastEvent := c.status.Counts(), c.status.lastEvent
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
