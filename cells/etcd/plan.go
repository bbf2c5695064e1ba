// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"container/list"
	"time"

	"github.com/cespare/xxhash/v2"
)

// plan decides which operations go into which commit. It does no I/O and knows
// no clock; the Writer drives it under its lock, and the property test drives
// it against a model of etcd.
//
// Its promises: of several operations on a key only the last is committed; at
// most one operation on a key is under way; operations are taken in the order
// in which their keys were first queued; what is already so in etcd is not
// written; an operation at fault holds back no other key.
type plan struct {
	// pending operations in order of arrival, each at most once per key.
	queue *list.List // of *operation
	byKey map[target]*list.Element
	// inflight are the operations of commits under way.
	inflight map[target]*operation
	// parked operations were refused by etcd by themselves; see unpark.
	parked map[target]*operation
	// bytes and deletes are those of queue.
	bytes, deletes int
}

// target is one key of one Scope.
type target struct {
	scope *Scope
	key   string
}

// operation is one wanted change, and who waits for it.
type operation struct {
	target
	value  []byte
	hash   uint64
	delete bool
	// uncertain: a commit for the key failed, which etcd may have made all the
	// same, so that what is known to be in etcd may not be what is there.
	uncertain bool
	// stale: it is under way for a source that its Scope no longer has.
	stale    bool
	lease    leaseNumber // that the commit under way puts it on
	refusals int
	refusal  error
	retryAt  time.Time
	waiting  []*barrier
}

// barrier counts down to a call when a set of operations is committed.
type barrier struct {
	left int
	done func()
}

// opOverhead is what an operation costs in a request beside key and value.
const opOverhead = 32

func (op *operation) size() int {
	return len(op.scope.cfg.Prefix) + len(op.key) + len(op.value) + opOverhead
}

func newPlan() *plan {
	return &plan{
		queue:    list.New(),
		byKey:    make(map[target]*list.Element),
		inflight: make(map[target]*operation),
		parked:   make(map[target]*operation),
	}
}

// add queues an operation unless it would change nothing. committed is what is
// known to be in etcd for the key.
func (p *plan) add(t target, op Op, committed record, known bool) {
	next := &operation{target: t, value: op.Value, delete: op.Delete}
	if !op.Delete {
		next.hash = xxhash.Sum64(op.Value)
	}
	under := p.inflight[t]
	if under != nil && !op.Delete {
		under.stale = false
	}
	if element, ok := p.byKey[t]; ok {
		// Last write wins, in the place of the first.
		old := element.Value.(*operation)
		if under == nil && !old.uncertain && next.unchanged(committed, known) {
			p.remove(element)
			p.release(old)
			return
		}
		next.waiting, next.uncertain = old.waiting, old.uncertain
		p.count(old, -1)
		p.count(next, 1)
		element.Value = next
		return
	}
	if old, ok := p.parked[t]; ok {
		// A new value may be better than the one that was refused.
		delete(p.parked, t)
		next.waiting, next.uncertain = old.waiting, old.uncertain
	} else if under != nil {
		if under.delete == next.delete && under.hash == next.hash {
			return
		}
	} else if next.unchanged(committed, known) {
		return
	}
	p.push(next)
}

// unchanged says whether etcd already has what op wants.
func (op *operation) unchanged(committed record, known bool) bool {
	if op.delete {
		return !known
	}
	return known && !committed.lost() && committed.hash == op.hash
}

func (p *plan) push(op *operation) {
	p.byKey[op.target] = p.queue.PushBack(op)
	p.count(op, 1)
}

func (p *plan) remove(element *list.Element) {
	op := element.Value.(*operation)
	p.queue.Remove(element)
	delete(p.byKey, op.target)
	p.count(op, -1)
}

// count keeps the sums over the queue when it gains or, with -1, loses op.
func (p *plan) count(op *operation, sign int) {
	p.bytes += sign * op.size()
	if op.delete {
		p.deletes += sign
	}
}

// next takes the operations of one commit: as many as fit into the limits, in
// order, leaving those whose key is under way. nil means that there is nothing
// to do now. An operation that is larger than maxBytes goes alone.
//
// With deletesOnly all puts are passed over, in O(length of the queue).
func (p *plan) next(maxOps, maxBytes int, deletesOnly bool) []*operation {
	var (
		batch []*operation
		bytes int
	)
	for element := p.queue.Front(); element != nil && len(batch) < maxOps; {
		op, following := element.Value.(*operation), element.Next()
		if p.inflight[op.target] != nil || (deletesOnly && !op.delete) {
			element = following
			continue
		}
		if len(batch) > 0 && bytes+op.size() > maxBytes {
			break
		}
		p.remove(element)
		p.inflight[op.target] = op
		batch = append(batch, op)
		bytes += op.size()
		element = following
	}
	return batch
}

// full says whether more than one commit's worth is pending.
func (p *plan) full(maxOps, maxBytes int) bool {
	return p.queue.Len() >= maxOps || p.bytes >= maxBytes
}

// succeeded ends a commit that was made.
func (p *plan) succeeded(batch []*operation) {
	for _, op := range batch {
		delete(p.inflight, op.target)
		p.release(op)
	}
}

// failed ends a commit that was not made and queues its operations again, at
// the front and in order, unless a later one has taken their place.
func (p *plan) failed(batch []*operation) {
	for i := len(batch) - 1; i >= 0; i-- {
		op := batch[i]
		delete(p.inflight, op.target)
		if element, ok := p.byKey[op.target]; ok {
			newer := element.Value.(*operation)
			newer.waiting, newer.uncertain = append(newer.waiting, op.waiting...), true
			continue
		}
		op.uncertain = true
		p.byKey[op.target] = p.queue.PushFront(op)
		p.count(op, 1)
	}
}

// park sets aside the operation of a commit of one that etcd refuses, until
// unpark finds it due. Its waiters go on waiting: it isn't committed.
func (p *plan) park(op *operation, due time.Time) {
	delete(p.inflight, op.target)
	if element, ok := p.byKey[op.target]; ok {
		newer := element.Value.(*operation)
		newer.waiting = append(newer.waiting, op.waiting...)
		newer.uncertain = newer.uncertain || op.uncertain
		return
	}
	op.retryAt = due
	p.parked[op.target] = op
}

// abandon ends a commit of one operation that nobody wants any more.
func (p *plan) abandon(op *operation) {
	delete(p.inflight, op.target)
	p.release(op)
}

// unpark queues the parked operations that are due.
func (p *plan) unpark(now time.Time) {
	for t, op := range p.parked {
		if !op.retryAt.After(now) {
			delete(p.parked, t)
			p.push(op)
		}
	}
}

// await calls done when every operation on the Scope that is now pending, under
// way or parked is committed or has become needless. It returns false, and
// doesn't call, where there is none.
func (p *plan) await(scope *Scope, done func()) bool {
	b := &barrier{done: done}
	join := func(op *operation) {
		if op.scope == scope {
			op.waiting = append(op.waiting, b)
			b.left++
		}
	}
	for element := p.queue.Front(); element != nil; element = element.Next() {
		join(element.Value.(*operation))
	}
	for _, op := range p.inflight {
		join(op)
	}
	for _, op := range p.parked {
		join(op)
	}
	return b.left > 0
}

// awaitKey is await for one key, and for what of it is queued or under way now.
func (p *plan) awaitKey(t target, done func()) bool {
	b := &barrier{done: done}
	join := func(op *operation) {
		if op != nil {
			op.waiting = append(op.waiting, b)
			b.left++
		}
	}
	if element, ok := p.byKey[t]; ok {
		join(element.Value.(*operation))
	}
	join(p.inflight[t])
	join(p.parked[t])
	return b.left > 0
}

func (p *plan) release(op *operation) {
	for _, b := range op.waiting {
		if b.left--; b.left == 0 {
			b.done()
		}
	}
	op.waiting = nil
}

// discard drops what is queued or parked for a Scope.
func (p *plan) discard(scope *Scope) {
	for element := p.queue.Front(); element != nil; {
		following := element.Next()
		if op := element.Value.(*operation); op.scope == scope {
			p.remove(element)
			p.release(op)
		}
		element = following
	}
	for t, op := range p.parked {
		if t.scope == scope {
			delete(p.parked, t)
			p.release(op)
		}
	}
}

// length is the number of operations that aren't committed yet.
func (p *plan) length() int { return p.queue.Len() + len(p.inflight) + len(p.parked) }
