// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"

	"github.com/waggle-mesh/waggle/cells/state"
)

// change is the last that is known of one object within a batch: what it says,
// or that it is gone.
type change[T any] struct {
	object  string // "namespace/name", or "name"
	rows    T
	deleted bool
}

// memory is what was kept of an object when it was last applied.
type memory[M any] struct {
	value M
	known bool
}

// apply writes one change into a transaction and says what to remember of the
// object for the next time. It is called by the one goroutine that applies
// batches. A deletion is only applied to an object that is known.
type apply[T, M any] func(*state.Txn, change[T], memory[M]) M

// reflector takes in one kind of object. Its source (client-go's reflector, or
// the manifests) calls it as a cache.ReflectorStore; objects are converted
// there and then, in the source's goroutine, and only what came out is kept
// until the applier collects it.
//
// At most one change is pending for each object: what waits is bounded by the
// number of objects, never by the number of events.
type reflector[T, M any] struct {
	kind     string
	convert  func(obj any, report report) (T, bool)
	apply    apply[T, M]
	problems *problems
	metrics  *Metrics
	// absent says of what was converted that the object might as well not be there:
	// nothing is kept of it. It is for kinds most of whose objects say nothing; nil is
	// never.
	absent func(T) bool
	// transform strips objects while a streamed list is gathered; nil leaves them.
	transform cache.TransformFunc
	// wake tells the applier that something is pending.
	wake func()

	mu      sync.Mutex
	pending *pending[T]

	// memory is only touched by the applier.
	memory map[string]M
	listed bool
}

// pending are the changes since the last batch, in the order in which their
// objects first changed.
type pending[T any] struct {
	changes []change[T]
	index   map[string]int
	// replaced: what isn't in changes is gone, since a complete list was read.
	replaced bool
}

func newReflector[O any, T, M any](
	kind string, problems *problems, metrics *Metrics,
	convert func(O, report) (T, bool), apply apply[T, M],
) *reflector[T, M] {
	return &reflector[T, M]{
		kind: kind,
		convert: func(obj any, report report) (T, bool) {
			typed, ok := obj.(O)
			if !ok {
				report(ProblemType, unexpectedType(obj))
				var none T
				return none, false
			}
			return convert(typed, report)
		},
		apply:    apply,
		problems: problems,
		metrics:  metrics,
		wake:     func() {},
		pending:  &pending[T]{index: map[string]int{}},
		memory:   map[string]M{},
	}
}

var (
	_ cache.ReflectorStore    = (*reflector[int, int])(nil)
	_ cache.TransformingStore = (*reflector[int, int])(nil)
)

// Transformer gives what client-go applies to the objects of a list that it gathers
// one by one.
func (r *reflector[T, M]) Transformer() cache.TransformFunc { return r.transform }

// Add takes in a new or changed object; see cache.ReflectorStore.
func (r *reflector[T, M]) Add(obj any) error {
	c, ok, err := r.changeOf(obj)
	if err != nil || !ok {
		return err
	}
	r.put(c)
	return nil
}

// Update does what Add does.
func (r *reflector[T, M]) Update(obj any) error { return r.Add(obj) }

// Delete takes in that an object is gone; of obj only the name counts.
func (r *reflector[T, M]) Delete(obj any) error {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	r.put(change[T]{object: objectName(accessor.GetNamespace(), accessor.GetName()), deleted: true})
	return nil
}

// Replace takes in the complete list of objects: every other one is gone.
func (r *reflector[T, M]) Replace(items []any, _ string) error {
	size := len(items)
	if r.absent != nil {
		size = 0 // few of them count
	}
	next := &pending[T]{
		changes:  make([]change[T], 0, size),
		index:    make(map[string]int, size),
		replaced: true,
	}
	for i, item := range items {
		c, ok, err := r.changeOf(item)
		if err != nil {
			return err
		}
		items[i] = nil // the list is ours, and large
		if !ok {
			// It exists, but says nothing: what it said before stays.
			next.keep(c.object)
			continue
		}
		if c.deleted {
			continue
		}
		next.put(c)
	}

	r.mu.Lock()
	r.pending = next
	r.mu.Unlock()
	r.wake()
	return nil
}

// Resync is never asked for, since resyncs are off.
func (r *reflector[T, M]) Resync() error { return nil }

func (r *reflector[T, M]) changeOf(obj any) (c change[T], ok bool, err error) {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return c, false, err
	}
	c.object = objectName(accessor.GetNamespace(), accessor.GetName())
	c.rows, ok = r.convert(obj, r.problems.of(c.object))
	c.deleted = ok && r.absent != nil && r.absent(c.rows)
	return c, ok, nil
}

func (r *reflector[T, M]) put(c change[T]) {
	r.mu.Lock()
	r.pending.put(c)
	r.mu.Unlock()
	r.wake()
}

func (p *pending[T]) put(c change[T]) {
	if at, ok := p.index[c.object]; ok && at >= 0 {
		p.changes[at] = c
		return
	}
	p.index[c.object] = len(p.changes)
	p.changes = append(p.changes, c)
}

// keep notes that object exists without changing anything about it.
func (p *pending[T]) keep(object string) {
	if _, ok := p.index[object]; !ok {
		p.index[object] = -1
	}
}

// collect takes what is pending and gives the function that applies it, nil
// when there is nothing.
func (r *reflector[T, M]) collect() func(*state.Txn) {
	r.mu.Lock()
	batch := r.pending
	if len(batch.changes) == 0 && !batch.replaced {
		r.mu.Unlock()
		return nil
	}
	r.pending = &pending[T]{index: map[string]int{}}
	r.mu.Unlock()
	if !r.matters(batch) {
		return nil
	}
	return func(tx *state.Txn) { r.applyBatch(tx, batch) }
}

// matters: a batch of deletions of what isn't known is no reason for a transaction.
// Of pods that say nothing each change of status is one.
func (r *reflector[T, M]) matters(batch *pending[T]) bool {
	if batch.replaced {
		return true
	}
	for i := range batch.changes {
		c := &batch.changes[i]
		if !c.deleted {
			return true
		}
		if _, known := r.memory[c.object]; known {
			return true
		}
	}
	return false
}

func (r *reflector[T, M]) applyBatch(tx *state.Txn, batch *pending[T]) {
	var upserts, deletes int
	for i := range batch.changes {
		c := &batch.changes[i]
		if c.deleted {
			deletes += r.forget(tx, c.object)
			continue
		}
		old, known := r.memory[c.object]
		r.memory[c.object] = r.apply(tx, *c, memory[M]{value: old, known: known})
		upserts++
	}
	if batch.replaced {
		// After the upserts: an address that moved to another object while
		// nobody watched keeps its row.
		for object := range r.memory {
			if _, ok := batch.index[object]; !ok {
				deletes += r.forget(tx, object)
			}
		}
		r.listed = true
	}
	if upserts > 0 {
		r.metrics.Events.WithLabelValues(r.kind, "upsert").Add(float64(upserts))
	}
	if deletes > 0 {
		r.metrics.Events.WithLabelValues(r.kind, "delete").Add(float64(deletes))
	}
}

// forget applies the deletion of an object, if it is known, and counts it.
func (r *reflector[T, M]) forget(tx *state.Txn, object string) int {
	old, known := r.memory[object]
	if !known {
		return 0
	}
	r.apply(tx, change[T]{object: object, deleted: true}, memory[M]{value: old, known: true})
	delete(r.memory, object)
	return 1
}

// name is the kind that is reflected.
func (r *reflector[T, M]) name() string { return r.kind }

// complete says whether a complete list was applied. Only for the applier.
func (r *reflector[T, M]) complete() bool { return r.listed }

// setWake connects the reflector to its applier, before anything runs.
func (r *reflector[T, M]) setWake(wake func()) { r.wake = wake }
