// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"time"

	"github.com/cespare/xxhash/v2"
)

// plan decides which operations go into which commit. It does no I/O and knows
// no clock; the Writer drives it under its lock, and the property test drives
// it against a model of etcd.
//
// Its promises: of several operations on a key only the last is committed; at
// most one operation on a key is under way; operations are taken in the order
// in which their keys were first queued, but for those that go first; what is already so in etcd is not
// written; an operation at fault holds back no other key.
//
// Cost of an operation from add to succeeded: three accesses to the map of its
// Scope's operations, and next to no allocation; BenchmarkPlan guards it.
type plan struct {
	// first and last are the ends of the queue: pending operations in order of
	// arrival, each at most once per key.
	first, last *operation
	queued      int
	// flying is the number of operations in commits under way.
	flying int
	// parked operations were refused by etcd by themselves; see unpark.
	parked map[*operation]struct{}
	// spare are operations that were allocated and aren't used yet.
	spare []operation
	// bytes and deletes are those of the queue.
	bytes, deletes int
	// now is what the Writer's clock said last; operations that are queued take it.
	now time.Time
}

// target is one key of one Scope.
type target struct {
	scope *Scope
	key   string
}

// operation is one wanted change, and who waits for it.
type operation struct {
	target
	value []byte
	hash  uint64
	// since is when it was queued, in nanoseconds since 1970; a later operation that
	// takes its place leaves it.
	since int64

	phase  phase
	delete bool
	// uncertain: a commit for the key failed, which etcd may have made all the
	// same, so that what is known to be in etcd may not be what is there.
	uncertain bool
	// stale: it was asked for before its Scope's present pass began, or for a
	// source that the Scope no longer has.
	stale bool
	lease leaseNumber // that the commit under way puts it on

	// prev and next are its neighbours in the queue.
	prev, next *operation
	// under is the operation on the same key that is under way while this one is
	// pending, and over is the way back.
	under, over *operation

	group   *group
	refused *refusal
	waiting []*barrier
}

// phase is where an operation is.
type phase uint8

const (
	pending phase = iota
	flying
	parked
)

// refusal is what etcd said of an operation.
type refusal struct {
	times   int
	reason  error
	retryAt time.Time
}

// group is the operations of a Scope that were first queued between two calls of
// await. Groups end in order: who waits for one waits for those before it.
type group struct {
	left int
	// done is called when this group and those before it have ended. None is
	// queued into a group that somebody waits for.
	done []func()
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

func newPlan() *plan { return &plan{parked: make(map[*operation]struct{})} }

// add queues an operation unless it would change nothing. committed is what is
// known to be in etcd for the key.
func (p *plan) add(t target, op Op, committed record, known bool) {
	var hash uint64
	if !op.Delete {
		hash = xxhash.Sum64(op.Value)
	}
	old := t.scope.ops[t.key]
	t.scope.countHeld(old.wants(known), !op.Delete)
	under := old
	if old != nil && old.phase != flying {
		under = old.under
	}
	if under != nil && !op.Delete {
		under.stale = false
	}
	same := known && !committed.lost() && committed.hash == hash
	if op.Delete {
		same = !known
	}
	switch {
	case old == nil:
		if same {
			return
		}
	case old.phase == flying:
		if old.delete == op.Delete && old.hash == hash {
			return
		}
	case old.phase == pending:
		if under == nil && !old.uncertain && same {
			p.unqueue(old)
			p.end(old)
			return
		}
		// Last write wins, in the place of the first.
		p.count(old, -1)
		old.value, old.hash, old.delete, old.stale = op.Value, hash, op.Delete, false
		p.count(old, 1)
		if op.First {
			p.unqueue(old)
			p.pushFront(old)
		}
		return
	case old.phase == parked:
		// A new value may be better than the one that was refused.
		delete(p.parked, old)
		old.value, old.hash, old.delete, old.stale, old.refused = op.Value, hash, op.Delete, false, nil
		p.push(old)
		return
	}
	next := p.allocate()
	next.target, next.value, next.hash, next.delete, next.under = t, op.Value, hash, op.Delete, under
	next.since = p.now.UnixNano()
	if under != nil {
		under.over = next
	}
	t.scope.setOp(next)
	next.group = t.scope.openGroup()
	next.group.left++
	if op.First {
		p.pushFront(next)
		return
	}
	p.push(next)
}

// operationsAtOnce is the number of operations of one allocation. All of it stays
// in memory as long as one of them does; they end in about the order in which they
// come.
const operationsAtOnce = 32

func (p *plan) allocate() *operation {
	if len(p.spare) == 0 {
		p.spare = make([]operation, operationsAtOnce)
	}
	op := &p.spare[0]
	p.spare = p.spare[1:]
	return op
}

// wants says whether the key is to exist once op, the last one on it or nil, is
// committed. known says whether it does now.
func (op *operation) wants(known bool) bool {
	if op == nil {
		return known
	}
	return !op.delete
}

// push queues an operation at the end, and pushFront at the front.
func (p *plan) push(op *operation) {
	op.phase, op.prev, op.next = pending, p.last, nil
	if p.last == nil {
		p.first = op
	} else {
		p.last.next = op
	}
	p.last = op
	p.queued++
	p.count(op, 1)
}

func (p *plan) pushFront(op *operation) {
	op.phase, op.prev, op.next = pending, nil, p.first
	if p.first == nil {
		p.last = op
	} else {
		p.first.prev = op
	}
	p.first = op
	p.queued++
	p.count(op, 1)
}

func (p *plan) unqueue(op *operation) {
	if op.prev == nil {
		p.first = op.next
	} else {
		op.prev.next = op.next
	}
	if op.next == nil {
		p.last = op.prev
	} else {
		op.next.prev = op.prev
	}
	op.prev, op.next = nil, nil
	p.queued--
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
	for op := p.first; op != nil && len(batch) < maxOps; {
		following := op.next
		if op.under != nil || (deletesOnly && !op.delete) {
			op = following
			continue
		}
		if len(batch) > 0 && bytes+op.size() > maxBytes {
			break
		}
		if batch == nil {
			batch = make([]*operation, 0, min(maxOps, p.queued))
		}
		p.unqueue(op)
		op.phase = flying
		p.flying++
		batch = append(batch, op)
		bytes += op.size()
		op = following
	}
	return batch
}

// full says whether more than one commit's worth is pending.
func (p *plan) full(maxOps, maxBytes int) bool {
	return p.queued >= maxOps || p.bytes >= maxBytes
}

// succeeded ends a commit that was made.
func (p *plan) succeeded(batch []*operation) {
	for _, op := range batch {
		p.flying--
		p.end(op)
	}
}

// failed ends a commit that was not made and queues its operations again, at
// the front and in order, unless a later one has taken their place.
func (p *plan) failed(batch []*operation) {
	for i := len(batch) - 1; i >= 0; i-- {
		op := batch[i]
		p.flying--
		op.uncertain = true
		if !p.superseded(op) {
			p.pushFront(op)
		}
	}
}

// park sets aside the operation of a commit of one that etcd refuses, until
// unpark finds it due. Its waiters go on waiting: it isn't committed.
func (p *plan) park(op *operation, due time.Time) {
	p.flying--
	if p.superseded(op) {
		return
	}
	if op.refused == nil {
		op.refused = &refusal{}
	}
	op.phase, op.refused.retryAt = parked, due
	p.parked[op] = struct{}{}
}

// superseded ends an operation that wasn't committed if there is a later one on
// its key. Who waited for it waits for that one.
func (p *plan) superseded(op *operation) bool {
	newer := op.over
	if newer == nil {
		return false
	}
	newer.under, op.over = nil, nil
	newer.uncertain = newer.uncertain || op.uncertain
	newer.waiting = append(newer.waiting, op.waiting...)
	own := newer.group
	newer.group, op.group = op.group, nil
	own.left--
	op.scope.endGroups()
	return true
}

// abandon ends a commit of one operation that nobody wants any more.
func (p *plan) abandon(op *operation) {
	p.flying--
	p.end(op)
}

// unpark queues the parked operations that are due.
func (p *plan) unpark(now time.Time) {
	for op := range p.parked {
		if !op.refused.retryAt.After(now) {
			delete(p.parked, op)
			p.push(op)
		}
	}
}

// end takes an operation, which isn't queued, out of its Scope and calls those
// who waited for it.
func (p *plan) end(op *operation) {
	switch {
	case op.over != nil:
		op.over.under = nil
	case op.under != nil:
		op.under.over = nil
		op.scope.setOp(op.under)
	default:
		op.scope.unsetOp(op.key)
	}
	op.over, op.under = nil, nil
	for _, b := range op.waiting {
		if b.left--; b.left == 0 {
			b.done()
		}
	}
	op.waiting = nil
	op.group.left--
	op.scope.endGroups()
}

// await calls done when every operation on the Scope that is now pending, under
// way or parked is committed or has become needless. It returns false, and
// doesn't call, where there is none.
func (p *plan) await(scope *Scope, done func()) bool {
	if len(scope.groups) == 0 {
		return false
	}
	last := scope.groups[len(scope.groups)-1]
	last.done = append(last.done, done)
	return true
}

// awaitKey is await for one key, and for what of it is queued or under way now.
func (p *plan) awaitKey(t target, done func()) bool {
	op := t.scope.ops[t.key]
	if op == nil {
		return false
	}
	b := &barrier{done: done}
	for ; op != nil; op = op.under {
		op.waiting = append(op.waiting, b)
		b.left++
	}
	return true
}

// discard drops what is queued or parked for a Scope; unless all, but for what
// etcd may have all the same, since a commit's answer was lost.
func (p *plan) discard(scope *Scope, all bool) {
	for _, op := range scope.ops {
		switch {
		case op.phase == flying, op.uncertain && !all:
			continue
		case op.phase == pending:
			p.unqueue(op)
		default:
			delete(p.parked, op)
		}
		_, known := scope.record(op.key)
		scope.countHeld(!op.delete, op.under.wants(known))
		p.end(op)
	}
}

// length is the number of operations that aren't committed yet.
func (p *plan) length() int { return p.queued + p.flying + len(p.parked) }
