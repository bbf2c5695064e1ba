// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"time"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// applyChunk is the number of operations that a Scope is given at a time. The page
// of a list has tens of thousands.
const applyChunk = 512

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
//
// The Reader remembers nothing: the Scope knows the same keys, one to one, and
// drops what is in the local etcd already.
func (r *replica) follow(layout layout, validator *wire.Validator, budget *budget) {
	cfg := etcd.ReaderConfig{
		Log:          r.cluster.log,
		Prefix:       wire.Prefix(r.resource, r.cluster.name, layout.cached),
		RelistJitter: r.cluster.mesh.relistJitter,
		Lists:        r.cluster.mesh.lists,
		Passthrough:  true,
	}
	// The additions of later schemas are optional: a source that doesn't know
	// them writes no canary for them, and none is waited for.
	if layout.canaries {
		cfg.Canary = wire.CanaryKey(r.resource, r.cluster.name, layout.cached)
	}
	r.cluster.mu.Lock()
	r.reader = etcd.NewReader(cfg, r)
	r.wanted = 0 // a new Reader delivers everything
	r.admission = newAdmission(r.resource, validator, budget, r.scope)
	r.admission.regional = r.cluster.regional
	r.cluster.mu.Unlock()
	r.scope.Restart()
}

// decideAgain has everything that the source has admitted once more. The Reader
// doesn't run; its next Run begins with a list.
func (r *replica) decideAgain() {
	r.cluster.mu.Lock()
	r.admission.regional = r.cluster.regional
	r.complete = false
	r.reader.Resend(nil)
	r.cluster.mu.Unlock()
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
	c.mu.Lock()
	if batch.First {
		r.admission.beginPass()
		r.scope.BeginPass()
	}
	r.take(batch)
	if batch.Synced {
		r.admission.endPass()
		if batch.Resent >= r.wanted {
			r.served = r.refills
		}
		// A list that began before the local etcd lost keys completes nothing.
		r.scope.CompleteAfter(r.served)
	}
	if !batch.Listing && r.admission.room() {
		r.reader.Resend(nil)
	}
	if len(batch.Events) > 0 {
		c.status.lastEvent = time.Now()
	}
	c.mu.Unlock()
	c.changed()
}

// take hands what is admitted of a batch to the Scope. The lock is held, so that
// the resources of a cluster don't exceed their budget together.
func (r *replica) take(batch etcd.Batch) {
	c := r.cluster
	crowded, chunk := r.admission.crowds(len(batch.Events)), applyChunk
	if crowded {
		chunk = 1
	}
	for _, ev := range batch.Events {
		op, err := r.admission.admit(ev, batch.Listing, crowded)
		if err != nil {
			_ = c.status.Refuse(c.log, r.resource, ev.Key, err) // counted and logged
		}
		if r.ops = append(r.ops, op); len(r.ops) >= chunk {
			r.apply()
		}
	}
	r.apply()
	if batch.Listing {
		r.ops = nil // there may not be another one for long
	}
}

func (r *replica) apply() {
	r.scope.Apply(r.ops)
	clear(r.ops) // which would keep the values in memory until the next batch
	r.ops = r.ops[:0]
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
	r.clear(ctx)
	return r.scope.Barrier(ctx)
}

// clear is drain without the wait. The Reader doesn't run.
func (r *replica) clear(ctx context.Context) {
	r.reader.Drain(ctx) // so that it begins from nothing
	r.cluster.mu.Lock()
	r.admission.clear()
	r.cluster.mu.Unlock()
	r.scope.Clear()
}
