// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import "time"

const (
	// batchLookups are asked for together: a key of each in a transaction that any etcd
	// takes, of 128; where it is two, the etcd's client makes two of them.
	batchLookups = 120
	// maxBatches are asked for at a time about one cluster: while one answer is on its way
	// the next question is.
	maxBatches = 2

	// gatherFor is how long a batch waits for more lookups, if the one before, which ended
	// less than busyFor ago, had more than twice as many: who has asked then asks again.
	gatherFor = time.Millisecond
	busyFor   = 10 * time.Millisecond
	// joinFor is how long such a batch waits for the one that is under way: a request
	// of its own costs as much as some twenty lookups.
	joinFor = 3 * time.Millisecond
)

// pace says when lookups of one cluster begin: at once in quiet, and in as few requests
// as may be under load, without a delay that would matter beside the answer's own. It is
// a state machine without I/O or clock, used by one goroutine at a time.
type pace struct {
	// batches and lookups are under way.
	batches, lookups int
	// first is when the first came of those that wait.
	first time.Time
	// last is the size of the batch that began last, at began; ended is when one was
	// answered last.
	last         int
	began, ended time.Time
}

// queued takes note of a lookup that waits, as the n-th of them.
func (p *pace) queued(n int, now time.Time) {
	if n == 1 {
		p.first = now
	}
}

// room is how many lookups may begin now, together, of those that wait; or for how long
// to wait for more of them, if none may. Nothing is to be waited for where both are 0: the
// end of a batch will tell.
func (p *pace) room(waiting, concurrency int, now time.Time) (n int, wait time.Duration) {
	n = min(batchLookups, concurrency-p.lookups)
	if p.batches >= maxBatches || n <= 0 {
		return 0, 0
	}
	if waiting > p.last/2 || waiting >= n {
		return n, 0
	}
	switch {
	case p.batches > 0:
		wait = p.began.Add(joinFor).Sub(now)
	case now.Sub(p.ended) < busyFor:
		wait = p.first.Add(gatherFor).Sub(now)
	}
	if wait > 0 {
		return 0, wait
	}
	return n, 0
}

// begin takes note of a batch, and end of its answer.
func (p *pace) begin(lookups int, now time.Time) {
	p.batches++
	p.lookups += lookups
	p.last, p.began = lookups, now
}

func (p *pace) end(lookups int, now time.Time) {
	p.batches--
	p.lookups -= lookups
	p.ended = now
}
