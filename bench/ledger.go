// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/follower"
)

// ledger keeps what was sent and what has arrived. An event has arrived once its
// key has that state or a later one: a state that was overtaken by the next one
// of its key, as it may be by design, isn't missing. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	events  []event // by number, from 1
	last    map[objectOf]int
	arrived int
	// seen are the events that arrived themselves, and latencies theirs.
	seen      int
	latencies *hdrhistogram.Histogram
	// accepted are the times until whoever was sent an event had it, where that is
	// noted, and beyond from then on until it arrived.
	accepted, beyond *hdrhistogram.Histogram
	// longest is the largest number of events that hadn't arrived.
	longest int
	changed chan struct{}
}

// objectOf is an endpoint of a cluster.
type objectOf struct{ cluster, endpoint int }

type event struct {
	due      time.Time
	previous int // event of the same object, 0 if there is none
	arrived  bool
	// at is when it arrived itself, and accepted when it was; zero where neither
	// or nobody says.
	at, accepted time.Time
}

func newLedger() *ledger {
	return &ledger{
		events: make([]event, 1), last: map[objectOf]int{}, latencies: follower.NewHistogram(),
		accepted: follower.NewHistogram(), beyond: follower.NewHistogram(), changed: make(chan struct{}),
	}
}

// send notes an event and gives its number.
func (l *ledger) send(object objectOf, due time.Time) (number int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	number = len(l.events)
	l.events = append(l.events, event{due: due, previous: l.last[object]})
	l.last[object] = number
	l.longest = max(l.longest, l.queue())
	return number
}

// arrive notes that an event has arrived, and with it those before it. An event
// that nobody sent is passed over.
func (l *ledger) arrive(number int, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number < 1 || number >= len(l.events) || l.events[number].arrived {
		return
	}
	l.seen++
	ev := &l.events[number]
	ev.at = at
	follower.Record(l.latencies, at.Sub(ev.due))
	l.passed(ev)
	for n := number; n != 0 && !l.events[n].arrived; n = l.events[n].previous {
		l.events[n].arrived = true
		l.arrived++
	}
	if l.queue() == 0 {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// accept notes that an event was accepted, which may be known after it arrived.
func (l *ledger) accept(number int, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ev := &l.events[number]
	ev.accepted = at
	follower.Record(l.accepted, at.Sub(ev.due))
	l.passed(ev)
}

// passed records the time after an event was accepted, once both are known. The
// lock is held.
func (l *ledger) passed(ev *event) {
	if !ev.at.IsZero() && !ev.accepted.IsZero() {
		follower.Record(l.beyond, ev.at.Sub(ev.accepted))
	}
}

// queue is the number of events that haven't arrived. The lock is held.
func (l *ledger) queue() int { return len(l.events) - 1 - l.arrived }

// tally is a ledger at one moment.
type tally struct {
	sent, arrived, seen, longest int
	// sum is, over all objects, the sum of the number of the last event.
	sum       int
	latencies *hdrhistogram.Snapshot
	// accepted and beyond have nothing where nobody said when events were accepted.
	accepted, beyond *hdrhistogram.Snapshot
}

func (l *ledger) tally() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := tally{sent: len(l.events) - 1, arrived: l.arrived, seen: l.seen, longest: l.longest, latencies: l.latencies.Export(),
		accepted: l.accepted.Export(), beyond: l.beyond.Export()}
	for _, number := range l.last {
		t.sum += number
	}
	return t
}

// queueNow is the number of events that haven't arrived.
func (l *ledger) queueNow() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue()
}

// complete gives whether everything has arrived, and what is closed when it has.
func (l *ledger) complete() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue() == 0, l.changed
}
