// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Heartbeat writes the time to cilium/.heartbeat at start and each
// wire.HeartbeatInterval. Upstream's agents drop a connection on which it isn't
// seen to change. One process for each etcd has to do it.
type Heartbeat struct {
	writer   *etcd.Writer
	interval time.Duration
	now      func() time.Time
}

// NewHeartbeat makes a Heartbeat that writes through writer once it runs.
func NewHeartbeat(writer *etcd.Writer) *Heartbeat {
	return &Heartbeat{writer: writer, interval: wire.HeartbeatInterval, now: time.Now}
}

// Job is Run as a job.
func (h *Heartbeat) Job() job.Job { return job.OneShot("heartbeat", h.run) }

// run writes until ctx ends. What etcd loses is written again at once.
func (h *Heartbeat) run(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for the first write")
	lost := make(chan struct{}, 1)
	scope := h.writer.Scope(etcd.ScopeConfig{
		// The key is all that this Scope ever holds below the root of the
		// schema, which is never completed or dropped.
		Prefix: wire.BasePrefix,
		Lease:  true,
		Refill: func([]string) {
			select {
			case lost <- struct{}{}:
			default:
			}
		},
	})
	defer scope.Close()
	key := strings.TrimPrefix(wire.HeartbeatKey, wire.BasePrefix)
	ticker := time.NewTicker(h.interval)
	defer ticker.Stop()
	for {
		scope.Apply([]etcd.Op{{Key: key, Value: []byte(h.now().Format(time.RFC3339))}})
		if err := scope.Barrier(ctx); err != nil {
			return nil
		}
		health.OK("Last written " + h.now().UTC().Format(time.RFC3339))
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-lost:
		}
	}
}
