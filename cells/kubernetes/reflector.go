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
	object string // "namespace/name", or "name"
	rows   T
	// said is what of the rows is known.
	said    said
	deleted bool
}

// said is how an object that exists stands to its rows.
type said uint8

const (
	unsaid said = iota // it isn't known: of the object only its deletion is
	speaks             // its rows are what it says
	silent             // it might as well not be there: see reflector.absent
)

// What pending.index has of an object beside the place of its change.
const (
	asBefore  = -1 // it exists, and what it said stays
	nowSilent = -2 // it exists, and is silent
)

// memory is what was kept of an object when it was last applied.
type memory[M any] struct {
	value M
	known bool
}

// apply writes one change into a transaction and says what to remember of the
// object for the next time. It is called by the one goroutine that applies
// batches. A deletion is only applied to an object that is known. One that is silent is
// applied as deleted, whether it is known or not.
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
	// never. Of these kinds apply is told apart what is silent and what is gone, and
	// before a deletion what the object said last.
	absent func(T) bool
	// remains says of an object that isn't known whether what it said before it was
	// deleted still stands, which ends if one of its name is silent. It is set where
	// absent is, and only asked by the applier.
	remains func(object string) bool
	// transform strips objects while a streamed list is gathered; nil leaves them.
	transform cache.TransformFunc
	// wake tells the applier that something is pending.
	wake func()

	mu      sync.Mutex
	pending *pending[T]
	// spoke: any object ever spoke. Until then it doesn't matter which are silent.
	spoke bool

	// memory is only touched by the applier.
	memory map[string]M
	listed bool
}

// pending are the changes since the last batch, in the order in which their
// objects first changed.
type pending[T any] struct {
	changes []change[T]
	index   map[string]int
	// replaced: what isn't in index is gone, since a complete list was read.
	replaced bool
	// lastWords: what an object said before it was deleted counts.
	lastWords bool
}

func (r *reflector[T, M]) nothingPending(size int) *pending[T] {
	return &pending[T]{index: make(map[string]int, size), lastWords: r.absent != nil}
}

func newReflector[O any, T, M any](
	kind string, problems *problems, metrics *Metrics,
	convert func(O, report) (T, bool), apply apply[T, M],
) *reflector[T, M] {
	for _, action := range []string{actionUpsert, actionDelete} {
		metrics.Events.WithLabelValues(kind, action) // from 0 on
	}
	return &reflector[T, M]{
		kind: kind,
		convert: func(obj any, report report) (T, bool) {
			typed, ok := obj.(O)
			if !ok {
				report(problemType, unexpectedType(obj))
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

// keepingNothingOf sets what absent says apart; before anything is taken in.
func (r *reflector[T, M]) keepingNothingOf(absent func(T) bool, remains func(object string) bool) {
	r.absent, r.remains = absent, remains
	r.pending = r.nothingPending(0)
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

// Replace takes in the complete list of objects: every other one is gone. The names of
// those that are silent are kept until they are applied, except at the start.
func (r *reflector[T, M]) Replace(items []any, _ string) error {
	size := len(items)
	if r.absent != nil {
		size = 0 // few of them count
	}
	next := r.nothingPending(size)
	next.changes, next.replaced = make([]change[T], 0, size), true
	r.mu.Lock()
	spoke := r.spoke
	r.mu.Unlock()
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
		if c.said == silent {
			if spoke {
				next.index[c.object] = nowSilent
			}
			continue
		}
		next.put(c)
	}

	r.mu.Lock()
	if next.lastWords {
		next.follow(r.pending)
	}
	r.pending = next
	r.spoke = r.spoke || len(next.changes) > 0
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
	c.said = speaks
	if ok && r.absent != nil && r.absent(c.rows) {
		c.said = silent
	}
	return c, ok, nil
}

func (r *reflector[T, M]) put(c change[T]) {
	r.mu.Lock()
	r.pending.put(c)
	r.spoke = r.spoke || c.said == speaks
	r.mu.Unlock()
	r.wake()
}

func (p *pending[T]) put(c change[T]) {
	at, ok := p.index[c.object]
	if c.deleted && p.lastWords && ok {
		if at >= 0 {
			p.changes[at].deleted = true
			return
		}
		if at == nowSilent {
			return // to end in silence leaves no more
		}
	}
	if ok && at >= 0 {
		p.changes[at] = c
		return
	}
	p.index[c.object] = len(p.changes)
	p.changes = append(p.changes, c)
}

// follow adds what old, which won't be applied, has of the objects that aren't in the
// list: that they are gone, and what they said last.
func (p *pending[T]) follow(old *pending[T]) {
	for object, at := range old.index {
		if _, listed := p.index[object]; listed {
			continue
		}
		switch {
		case at >= 0:
			c := old.changes[at]
			c.deleted = true
			p.put(c)
		case at == nowSilent:
			p.index[object] = nowSilent
		}
	}
}

// keep notes that object exists without changing anything about it.
func (p *pending[T]) keep(object string) {
	if _, ok := p.index[object]; !ok {
		p.index[object] = asBefore
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
	r.pending = r.nothingPending(0)
	r.mu.Unlock()
	if !r.matters(batch) {
		return nil
	}
	return func(tx *state.Txn) { r.applyBatch(tx, batch) }
}

// matters: that something is gone or silent of which nothing is known is no reason for a
// transaction. Of pods that say nothing each change of status is that.
func (r *reflector[T, M]) matters(batch *pending[T]) bool {
	if batch.replaced {
		return true
	}
	for i := range batch.changes {
		c := &batch.changes[i]
		if c.said == speaks {
			return true
		}
		if _, known := r.memory[c.object]; known {
			return true
		}
		if c.said == silent && r.remains(c.object) {
			return true
		}
	}
	return false
}

func (r *reflector[T, M]) applyBatch(tx *state.Txn, batch *pending[T]) {
	var upserts, deletes int
	for i := range batch.changes {
		c := &batch.changes[i]
		if c.said == speaks {
			old, known := r.memory[c.object]
			r.memory[c.object] = r.apply(tx, change[T]{object: c.object, rows: c.rows, said: speaks}, memory[M]{value: old, known: known})
			upserts++
		}
		if c.deleted || c.said == silent {
			deletes += r.forget(tx, c.object, c.said)
		}
	}
	if batch.replaced {
		// After the upserts: an address that moved to another object while
		// nobody watched keeps its row.
		for object, at := range batch.index {
			if at == nowSilent {
				deletes += r.forget(tx, object, silent)
			}
		}
		for object := range r.memory {
			if _, ok := batch.index[object]; !ok {
				deletes += r.forget(tx, object, unsaid)
			}
		}
		r.listed = true
	}
	if upserts > 0 {
		r.metrics.Events.WithLabelValues(r.kind, actionUpsert).Add(float64(upserts))
	}
	if deletes > 0 {
		r.metrics.Events.WithLabelValues(r.kind, actionDelete).Add(float64(deletes))
	}
}

// forget applies that an object is silent or gone, and counts it if it is known.
func (r *reflector[T, M]) forget(tx *state.Txn, object string, how said) int {
	old, known := r.memory[object]
	if !known && how != silent {
		return 0
	}
	r.apply(tx, change[T]{object: object, said: how, deleted: true}, memory[M]{value: old, known: known})
	if !known {
		return 0
	}
	delete(r.memory, object)
	return 1
}

// name is the kind that is reflected.
func (r *reflector[T, M]) name() string { return r.kind }

// complete says whether a complete list was applied. Only for the applier.
func (r *reflector[T, M]) complete() bool { return r.listed }

// setWake connects the reflector to its applier, before anything runs.
func (r *reflector[T, M]) setWake(wake func()) { r.wake = wake }
