// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// scope is what is used of an etcdScope.
type scope interface {
	Load(ctx context.Context) error
	Apply(ops []etcd.Op)
	CompleteAfter(refills uint64) bool
	// Await and AwaitKey call back from a goroutine of the Writer's.
	Await(done func()) bool
	AwaitKey(key string, done func()) bool
	AwaitComplete(ctx context.Context) error
	IsComplete() bool
	Holds(key string) bool
	Len() int
}

// placeName names one of the prefixes that the keys of a resource are below.
type placeName struct {
	resource wire.Resource
	onDemand bool
}

// place is one of the prefixes, and what is about to happen there.
type place struct {
	scope
	name placeName
	ops  []etcd.Op
	// refills and losses are the Writer's calls that were seen to; see refill.
	refills, losses uint64
	// due: all that belongs here was applied, and blocking are the keys that were
	// about to leave then. While one of them isn't in its new place, what an earlier
	// process left of it here must not go, nor the canary say that all is there.
	due      bool
	blocking map[string]struct{}
	// awaited are the keys that AwaitKey was asked for, until it is read that it called
	// back: what is decided meanwhile doesn't ask again, so that at most one waits for
	// each key, however often that changes while etcd is away.
	awaited map[string]struct{}
	// pruned is one more than the losses after which, in etcd, nothing was left of
	// what an earlier process or another etcd had.
	pruned uint64
}

// apply queues the operations as one batch.
func (p *place) apply() {
	if len(p.ops) == 0 {
		return
	}
	p.Apply(p.ops)
	clear(p.ops)
	p.ops = p.ops[:0]
}

// moves has each key in one of two places, and never in neither while it moves: it
// is put into the new place first, and deleted in the old one when that put is
// committed. What is decided is decided again then, from the tables, so that
// nothing is remembered that might have changed.
type moves struct {
	pushed, onDemand *place
	// decided are the keys of the present batch.
	decided []decided
	// leaving are the keys that are still in a place which they are to leave.
	leaving map[string]*place
	// wake has a key decided again that was waited for in a place; it is safe to call
	// from any goroutine.
	wake func(place placeName, key string)
	// held says whether a pushed key has to stay for now, for another reason; who
	// says so has it decided again. nil is never.
	held func(key string, fate filter.Fate) bool
	// first has what is pushed written before what is queued already.
	first bool
	// left is told of pushed keys whose deletion is queued, and stays of keys that
	// were leaving; nil is nobody.
	left, stays func(key string)
}

type decided struct {
	key  string
	fate filter.Fate
}

// add appends what a decision means for the place that the key is to be in.
func (m *moves) add(key string, fate filter.Fate, value []byte) {
	switch fate {
	case filter.Pushed:
		m.pushed.ops = append(m.pushed.ops, etcd.Op{Key: key, Value: value, First: m.first})
	case filter.OnDemand:
		m.onDemand.ops = append(m.onDemand.ops, etcd.Op{Key: key, Value: value})
	case filter.Kept:
		m.onDemand.ops = append(m.onDemand.ops, etcd.Op{Key: key, Delete: true})
	}
	m.decided = append(m.decided, decided{key, fate})
}

// flush applies the batch: what comes, and then what can go by now.
//
// Cost beside that of Apply: two accesses to the Scopes a key.
func (m *moves) flush() {
	m.pushed.apply()
	m.onDemand.apply()
	for _, d := range m.decided {
		m.settle(d)
	}
	clear(m.decided)
	m.decided = m.decided[:0]
	m.pushed.apply()
	m.onDemand.apply()
}

// settle deletes a key where it isn't to be, or notes that it can't go yet.
func (m *moves) settle(d decided) {
	from, to := m.pushed, m.onDemand
	if d.fate == filter.Pushed {
		from, to = to, from
	}
	if old := m.leaving[d.key]; old != nil {
		delete(m.leaving, d.key)
		if old != from {
			delete(old.blocking, d.key) // it stays, after all
			if m.stays != nil {
				m.stays(d.key)
			}
		}
	}
	if !from.Holds(d.key) {
		delete(from.blocking, d.key)
		return // or its deletion is queued
	}
	waits := d.fate != filter.Kept && m.await(to, d.key)
	if from == m.pushed && m.held != nil && m.held(d.key, d.fate) {
		waits = true
	}
	if waits {
		m.leaving[d.key] = from
		return
	}
	delete(from.blocking, d.key)
	from.ops = append(from.ops, etcd.Op{Key: d.key, Delete: true})
	if from == m.pushed && m.left != nil {
		m.left(d.key)
	}
}

// await says whether there may be something to wait for in a place, before a key leaves
// the other one; it is decided again then.
func (m *moves) await(to *place, key string) bool {
	if _, waits := to.awaited[key]; waits {
		return true
	}
	if !to.AwaitKey(key, func() { m.wake(to.name, key) }) {
		return false
	}
	to.awaited[key] = struct{}{}
	return true
}

// again has a key decided on whose new value can't be encoded: it doesn't stay in
// two places for that.
func (m *moves) again(key string, fate filter.Fate) {
	to := m.pushed
	if fate == filter.OnDemand {
		to = m.onDemand
	}
	if m.leaving[key] != nil && to.Holds(key) {
		m.decided = append(m.decided, decided{key, fate})
	}
}

// blockingOf are the keys that are leaving a place now.
func (m *moves) blockingOf(p *place) map[string]struct{} {
	keys := map[string]struct{}{}
	for key, from := range m.leaving {
		if from == p {
			keys[key] = struct{}{}
		}
	}
	return keys
}
