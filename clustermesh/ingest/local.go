// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// LocalInitializer is the name under which the tables wait for this cluster's own
// state: while it is among their pending initializers, some of that may be missing.
const LocalInitializer = "incluster-cache"

// Local takes in this cluster's own state from the etcd of its in-cluster cache.
// What comes out is what cells/kubernetes makes of the same objects, of the same
// source; only the owners of claims on addresses aren't known: in an etcd the key
// is the claim.
type Local struct {
	handler *handler
	ready   chan struct{}
	// offered is what the source that was followed last had.
	offered atomic.Pointer[[]wire.Resource]
}

// NewLocal makes a Local of the cluster o.Local. It registers the initializers of
// the tables, so that it is for constructors, and only where it is then run. o.Startup
// is not used: the tables wait for as long as it takes, since whoever prunes by
// tables without the local pods would cut off the very node.
func NewLocal(o Options) *Local {
	l := &Local{ready: make(chan struct{})}
	done := o.Writer.RegisterInitializer(LocalInitializer, wire.CacheResources...)
	o.Startup = nil
	o.settled = func() {
		tx := o.Writer.Begin()
		done(tx)
		tx.Commit()
		close(l.ready)
	}
	o.complete()
	l.handler = newHandler(&o, o.Local.Name)
	l.handler.own = true
	// All of the etcd below it is this cluster's state.
	l.handler.group = etcd.NewWatchGroup(wire.StateRoot)
	l.handler.log = o.Log
	return l
}

// Run takes in the resources that the etcd behind client offers, until ctx ends
// (nil) or the client is of no more use. It may be called again, one call at a
// time, with a client of another etcd: what is known is kept, and only what differs
// changes. What is known and isn't among the resources any more goes: see Lacks.
func (l *Local) Run(ctx context.Context, client *etcd.Client, resources []wire.Resource) error {
	l.offered.Store(&resources)
	return l.handler.follow(ctx, client, offer{
		layout:    l.layout(),
		resources: resources,
	})
}

// Lacks gives a resource that is in force and that a source with these wouldn't
// have; "" is none.
func (l *Local) Lacks(resources []wire.Resource) wire.Resource {
	offered := l.offered.Load()
	if offered == nil {
		return ""
	}
	for _, r := range *offered {
		if !slices.Contains(resources, r) {
			return r
		}
	}
	return ""
}

// Has says whether the tables have what the etcd of that ID had of a resource at a
// revision; what came after it they may have as well. It is false while they are in
// between two states.
func (l *Local) Has(resource wire.Resource, etcdID uint64, revision int64) bool {
	l.handler.mu.Lock()
	defer l.handler.mu.Unlock()
	s := l.handler.streamOf(resource)
	return s != nil && s.enabled && s.position != nil && s.position.ClusterID == etcdID && s.position.Revision >= revision
}

// Save gives what is known, for a later process to Restore; nil while that is in
// between two states of its etcd. It costs next to nothing, and may be called from any
// goroutine.
func (l *Local) Save() *Saved { return l.handler.save() }

// Restore takes in entries of an earlier process, of any number at once, in the order
// in which Saved has them, before the first Run. They are checked like those of etcd.
// The tables don't count as initialized by it.
func (l *Local) Restore(resource wire.Resource, entries []Entry) error {
	l.prepare()
	return l.handler.restore(resource, entries)
}

// Resume has the first Run go on from a Position, once all entries of the resource are
// restored: by a watch, if the etcd is the one that it was and has all of the history
// since, or else by a list. With a zero Position it is a list.
func (l *Local) Resume(at SavedPosition) error {
	l.prepare()
	return l.handler.resumeAt(at)
}

// ExpireRestored applies the restored endpoints whose identity hasn't come, once they
// have waited for Options.HoldTimeout from its call on, or returns when ctx ends. It is
// for after the last Restore, beside Run: the cache may be away, and no Run begin, for
// as long as it likes.
func (l *Local) ExpireRestored(ctx context.Context) { l.handler.expireRestored(ctx) }

// prepare makes the Readers before Run does.
func (l *Local) prepare() {
	if l.handler.streams == nil {
		l.handler.prepare(l.layout())
	}
}

func (l *Local) layout() layout {
	return layout{clusterID: l.handler.options.Local.ID, canaries: true}
}

// Starts says how the Readers of what was restored began.
func (l *Local) Starts() map[wire.Resource]Start { return l.handler.starts() }

// Ready is closed once everything that the source offers was taken in for the
// first time.
func (l *Local) Ready() <-chan struct{} { return l.ready }

// Counts is what the tables hold of this cluster.
func (l *Local) Counts() state.Counts { return l.handler.options.Writer.Counts(l.handler.cluster) }
