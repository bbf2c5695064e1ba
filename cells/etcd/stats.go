// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"time"
)

// WriterStats counts what a Writer did since it was made.
type WriterStats struct {
	// Commits is the number of transactions made, Operations of what they held.
	Commits, Operations uint64
	// Failures is the number of transactions that failed and were tried again.
	Failures uint64
	// Pending is the number of operations that aren't committed.
	Pending int
	// Refused is the number of those that etcd refuses by themselves.
	Refused int
	// Lag is for how long the oldest of the others has waited, about: what goes first
	// since others need it may hide an older one for as long as a commit takes.
	Lag time.Duration
	// Leases is the number of leases that are kept alive.
	Leases int
	// LastError is the last failure; empty since the last success, unless etcd
	// refuses something.
	LastError string
	// Silent is why etcd doesn't answer, by a question that is asked whether or not
	// there is something to write; empty since the last answer.
	Silent string
}

// Stats gives the counters. Cost: O(leases + commits under way).
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	stats := w.stats
	stats.Pending, stats.Refused = w.plan.length(), len(w.plan.parked)
	stats.Lag = w.lag(time.Now())
	stats.Leases = w.leases.count()
	for op := range w.plan.parked {
		stats.LastError = op.refused.reason.Error()
	}
	return stats
}

// lag is how long the oldest operation has waited. The lock is held.
func (w *Writer) lag(now time.Time) time.Duration {
	since := now.UnixNano()
	if w.plan.first != nil {
		since = min(since, w.plan.first.since)
	}
	for _, flight := range w.flights {
		since = min(since, flight)
	}
	return time.Duration(now.UnixNano() - since)
}

// oldest is since when the oldest operation of a batch has waited.
func oldest(batch []*operation) int64 {
	since := batch[0].since
	for _, op := range batch {
		since = min(since, op.since)
	}
	return since
}

// ScopeStats says how far one Scope is.
type ScopeStats struct {
	// Prefix is the Scope's; that of canaries is empty.
	Prefix string
	// Keys are known to be in etcd, and Pending are to be changed.
	Keys, Pending int
	// Loaded: all of the prefix is the Scope's, and was read.
	Loaded bool
	// Complete: all that the owner had at its last Complete is in etcd, canary
	// included, and etcd hasn't lost it since.
	Complete bool
	// Failures counts the operations that failed, each time they did.
	Failures uint64
}

// ScopeStats gives those of all Scopes, in no order.
func (w *Writer) ScopeStats() []ScopeStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]ScopeStats, 0, len(w.scopes))
	for s := range w.scopes {
		all = append(all, ScopeStats{
			Prefix: s.cfg.Prefix, Keys: s.records.len(), Pending: len(s.ops), Failures: s.failures, Loaded: s.loaded,
			Complete: s.wasComplete && !s.incomplete && s.hasCanary(),
		})
	}
	return all
}

// Commit is one attempt at a transaction, for who measures.
type Commit struct {
	// Took is how long etcd took, the granting of leases included, and Waited how long
	// the oldest operation had waited before.
	Took, Waited time.Duration
	// Puts and Deletes are the prefixes of the Scopes with such operations in it.
	Puts, Deletes []string
	// Err is why it wasn't made.
	Err error
}

// OnCommit has each attempt at a transaction told to fn, from its own goroutine; fn
// must not block. It is called before Run.
func (w *Writer) OnCommit(fn func(Commit)) { w.onCommit = fn }

// observe tells of a commit. Cost: a comparison for each operation.
func (w *Writer) observe(batch []*operation, began time.Time, err error) {
	if w.onCommit == nil {
		return
	}
	c := Commit{Took: time.Since(began), Waited: time.Duration(began.UnixNano() - oldest(batch)), Err: err}
	type part struct {
		scope  *Scope
		delete bool
	}
	var last part
	seen := make(map[part]struct{})
	for _, op := range batch {
		p := part{op.scope, op.delete}
		if p == last {
			continue
		}
		last = p
		if _, ok := seen[p]; ok {
			continue
		}
		seen[p] = struct{}{}
		if p.delete {
			c.Deletes = append(c.Deletes, p.scope.cfg.Prefix)
		} else {
			c.Puts = append(c.Puts, p.scope.cfg.Prefix)
		}
	}
	w.onCommit(c)
}

// count is the number of leases that aren't lost.
func (p *leasePool) count() int { return len(p.byID) }
