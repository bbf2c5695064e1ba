// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"time"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// replica is one resource of one cluster: what the Reader reads of the source,
// the Scope writes into the local etcd.
type replica struct {
	cluster   *cluster
	resource  wire.Resource
	reader    *etcd.Reader
	scope     *etcd.Scope
	admission *admission
	ops       []etcd.Op // reused from batch to batch; the Reader's goroutine's

	// Guarded by cluster.mu.
	enabled  bool
	complete bool // all of it is in the local etcd, canary included
	// refills counts the calls of refill, and served those of which all that was
	// lost has been applied again. wanted is the Reader's number of the last one.
	refills, served, wanted uint64
}

// newReplica makes the Scope, which lives as long as the replica, and the Reader
// for the first layout of the source.
func newReplica(c *cluster, resource wire.Resource) *replica {
	r := &replica{cluster: c, resource: resource}
	r.scope = c.mesh.writer.Scope(etcd.ScopeConfig{
		Prefix:      wire.CachePrefix(resource, c.name),
		Canary:      wire.CanaryKey(resource, c.name, true),
		CanaryValue: func() []byte { return []byte(time.Now().Format(time.RFC3339)) },
		Lease:       true,
		Refill:      r.refill,
		OnComplete:  r.completed,
	})
	return r
}

// follow (re)makes the Reader for a layout of the source. The Scope stays: what
// the new source has as well isn't written again.
func (r *replica) follow(layout layout, validator *wire.Validator, budget *budget) {
	cfg := etcd.ReaderConfig{
		Log:          r.cluster.log,
		Prefix:       wire.Prefix(r.resource, r.cluster.name, layout.cached),
		RelistJitter: r.cluster.mesh.relistJitter,
		Lists:        r.cluster.mesh.lists,
	}
	// The additions of later schemas are optional: a source that doesn't know
	// them writes no canary for them, and none is waited for.
	if layout.canaries {
		cfg.Canary = wire.CanaryKey(r.resource, r.cluster.name, layout.cached)
	}
	r.cluster.mu.Lock()
	r.reader = etcd.NewReader(cfg, r)
	r.wanted = 0 // a new Reader delivers everything
	r.admission = newAdmission(r.resource, validator, budget)
	r.cluster.mu.Unlock()
	r.scope.Restart()
}

// OnBatch implements etcd.Observer: one batch in, one batch out.
func (r *replica) OnBatch(ctx context.Context, batch etcd.Batch) {
	if batch.Listing {
		// A list can wait; a watch must not, since what it doesn't deliver piles
		// up in the client. Its backlog coalesces in the Writer instead. When the
		// Run ends meanwhile, the page is taken all the same: for the Reader it is
		// delivered, and no later list brings it again.
		_ = r.cluster.mesh.writer.Admit(ctx)
	}
	c := r.cluster
	r.ops = r.ops[:0]
	c.mu.Lock()
	for _, ev := range batch.Events {
		var err error
		if r.ops, err = r.admission.admit(r.ops, ev); err != nil {
			_ = c.status.Refuse(c.log, r.resource, ev.Key, err) // counted and logged
		}
	}
	again := r.admission.room()
	if batch.Synced && batch.Resent >= r.wanted {
		r.served = r.refills
	}
	served := r.served
	if len(batch.Events) > 0 {
		c.status.lastEvent = time.Now()
	}
	c.mu.Unlock()

	r.scope.Apply(r.ops)
	clear(r.ops) // which would keep the values in memory until the next batch
	if batch.Listing {
		r.ops = nil // far larger than any batch of the watch
	}
	if again != nil {
		r.reader.Resend(again)
	}
	if batch.Synced {
		// A list that began before the local etcd lost keys has passed over those
		// that are as they were: it completes nothing.
		r.scope.CompleteAfter(served)
	}
	c.changed()
}

// completed is called when all that was read is in the local etcd.
func (r *replica) completed() {
	r.cluster.mu.Lock()
	r.complete = true
	r.cluster.mu.Unlock()
	r.cluster.changed()
}

// refill is called when the local etcd has lost keys. They are read again from
// the source; what it no longer has is deleted.
func (r *replica) refill(keys []string) {
	r.cluster.mu.Lock()
	enabled, adopted := r.enabled, r.reader != nil
	r.complete = false
	r.refills++
	if enabled && adopted { // else the first list is yet to come
		r.wanted = r.reader.Resend(keys)
	}
	r.cluster.mu.Unlock()
	r.cluster.changed()
	if !enabled && adopted {
		r.scope.Complete() // nothing belongs there but the canary
	}
}

// drain deletes what is known of the source from the local etcd.
func (r *replica) drain(ctx context.Context) error {
	r.reader.Drain(ctx)
	return r.scope.Barrier(ctx)
}
