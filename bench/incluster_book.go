// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/follower"
)

// book keeps what the world is made of, and each write of an object: when it was
// sent to the API server, when that had it, and, once agents were asked, when it
// was in each agent's table. It is safe for concurrent use.
type book struct {
	mu sync.Mutex
	// now is the state of each object that is there once all writes are made, and sum
	// the sum of them.
	now map[follower.Object]follower.Mark
	sum follower.Mark
	// writes are those since begin, by number.
	writes []written
	// late is how long after it was due a write was sent, and request how long the
	// API server took for it, in microseconds.
	late, request *hdrhistogram.Histogram
}

// written is a write of an object.
type written struct {
	object         follower.Object
	mark           follower.Mark
	sent, accepted time.Time
}

func newBook() *book {
	b := &book{now: map[follower.Object]follower.Mark{}}
	b.begin()
	return b
}

// begin forgets the writes that were made.
func (b *book) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes = nil
	b.late, b.request = follower.NewHistogram(), follower.NewHistogram()
}

// have notes an object that is there from the start.
func (b *book) have(object follower.Object, mark follower.Mark) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(object, mark)
}

// set is have with the lock held.
func (b *book) set(object follower.Object, mark follower.Mark) {
	b.sum -= b.now[object]
	delete(b.now, object)
	if mark != object.Gone() {
		b.now[object] = mark
		b.sum += mark
	}
}

// give notes a write that is to be made.
func (b *book) give(object follower.Object, mark follower.Mark) (number int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(object, mark)
	b.writes = append(b.writes, written{object: object, mark: mark})
	return len(b.writes) - 1
}

// sent notes that a write is being made.
func (b *book) sent(number int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes[number].sent = time.Now()
}

// accepted notes that the API server has it.
func (b *book) accepted(number int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &b.writes[number]
	w.accepted = time.Now()
	follower.Record(b.request, w.accepted.Sub(w.sent))
}

// behind notes how late a change is made.
func (b *book) behind(due time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	follower.Record(b.late, time.Since(due))
}

// content is what every agent has to have once all writes have arrived.
func (b *book) content() (sum follower.Mark, rows int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sum, len(b.now)
}

// deliveries are when the writes of a book were in the tables of agents.
type deliveries struct {
	// numbers are those of the writes, by what they wrote.
	numbers map[follower.Mark]int
	// next is, by number, the next write of the same object; 0 if there is none.
	next   []int
	writes []written

	// all is from when a write was sent until it was in the table of an agent, for
	// each write and agent, in microseconds, and beyond since the API server had it.
	all, beyond *hdrhistogram.Histogram
	// agents is how many were taken in, and overtaken how often a table never had
	// the state that was written, since the next one of the same object was as soon.
	agents, overtaken int
	// last is when the last write was in the table of the last agent.
	last time.Time
}

// deliveries begins to take in what agents saw of the writes since begin. It is an
// error when two of them wrote the same.
func (b *book) deliveries() (*deliveries, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := &deliveries{
		numbers: make(map[follower.Mark]int, len(b.writes)), next: make([]int, len(b.writes)), writes: b.writes,
		all: follower.NewHistogram(), beyond: follower.NewHistogram(),
	}
	last := map[follower.Object]int{}
	for i, w := range b.writes {
		if _, ok := d.numbers[w.mark]; ok {
			return nil, fmt.Errorf("write %d made an object what it was before: no telling when it arrived", i+1)
		}
		d.numbers[w.mark] = i
		if before, ok := last[w.object]; ok {
			d.next[before] = i
		}
		last[w.object] = i
	}
	return d, nil
}

// add takes in one agent. A write has arrived once the agent's table has it or a
// later one of the same object. It is an error when one hasn't.
func (d *deliveries) add(arrivals []follower.Arrival) error {
	at := make([]time.Time, len(d.writes))
	for _, a := range arrivals {
		if i, ok := d.numbers[a.Mark]; ok && at[i].IsZero() {
			at[i] = a.At
		}
	}
	d.agents++
	for i := len(at) - 1; i >= 0; i-- {
		if at[i].IsZero() && d.next[i] != 0 {
			at[i] = at[d.next[i]]
			d.overtaken++
		}
		if at[i].IsZero() {
			return fmt.Errorf("agent %d never had write %d of %d", d.agents, i+1, len(at))
		}
		follower.Record(d.all, at[i].Sub(d.writes[i].sent))
		follower.Record(d.beyond, at[i].Sub(d.writes[i].accepted))
		if at[i].After(d.last) {
			d.last = at[i]
		}
	}
	return nil
}
