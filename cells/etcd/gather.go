// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// gatherConfig says how a Gather asks.
type gatherConfig[V any] struct {
	// Read reads keys, of which none is there twice, and gives a value for each, in their
	// order. It is called by up to Flights goroutines at a time.
	Read    func(ctx context.Context, keys []string) ([]V, error)
	Flights int
	// Timeout bounds a request, and what is asked again of it.
	Timeout time.Duration
	// MaxKeys are read at once; what one ask has always is.
	MaxKeys int
	// Alone says of an error whether the fault may be one key's. What was asked for
	// together is then asked for again by halves, until that one is alone.
	Alone func(error) bool
}

// Gather makes few requests of many, as a Writer does of writes: what is asked for while
// requests are under way is asked for together by the next one. In quiet each is asked
// for at once. With 64 who ask a key takes 15 µs, of 100 µs for a request of its own, the
// etcd's part in the same process (BenchmarkGather, nothing else running).
//
// There is no goroutine for it: of those who wait for a request one makes it. Its methods
// are safe for concurrent use.
type Gather[V any] struct {
	config gatherConfig[V]
	// free tells one of those who wait that it may make a request.
	free chan struct{}

	mu       sync.Mutex
	underWay int
	waiting  []ask[V]
}

// Got is what there is of one ask: a value for each of its keys, or an error.
type Got[V any] struct {
	Values []V
	Err    error
}

// ask is what stands and falls together.
type ask[V any] struct {
	call *call[V]
	at   int // of the call's asks
	keys []string
}

// call is one call of Get. It is under the Gather's mu.
type call[V any] struct {
	got []Got[V]
	// open are the asks without an answer, of which so many wait to be asked for.
	open, waiting int
	done          chan struct{} // closed when none is open
	left          bool          // nobody waits for an answer
}

// newGather makes a Gather.
func newGather[V any](config gatherConfig[V]) *Gather[V] {
	return &Gather[V]{config: config, free: make(chan struct{}, 1)}
}

// Get asks for what each of asks has, together with what others ask for. It returns when
// all is answered, or ctx ends; a request that it makes for others as well ends first,
// within its timeout. An error of an ask is that of Read, or of ctx.
func (g *Gather[V]) Get(ctx context.Context, asks ...[]string) []Got[V] {
	c := &call[V]{got: make([]Got[V], len(asks)), open: len(asks), waiting: len(asks), done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, keys := range asks {
		g.waiting = append(g.waiting, ask[V]{c, i, keys})
	}
	for c.open > 0 {
		if ctx.Err() != nil {
			g.leave(ctx, c)
			break
		}
		if c.waiting > 0 && g.underWay < g.config.Flights {
			batch := g.take()
			g.underWay++
			g.hand()
			g.mu.Unlock()
			got := g.fly(ctx, batch)
			g.mu.Lock()
			g.underWay--
			answer(batch, got)
			g.hand()
			continue
		}
		free := g.free
		if c.waiting == 0 {
			free = nil // what is left is under way
		}
		g.mu.Unlock()
		select {
		case <-c.done:
		case <-free:
		case <-ctx.Done():
		}
		g.mu.Lock()
	}
	g.hand() // if we were told, and don't need it
	return c.got
}

// hand tells one of those who wait that there is room for a request.
func (g *Gather[V]) hand() {
	if len(g.waiting) > 0 && g.underWay < g.config.Flights {
		select {
		case g.free <- struct{}{}:
		default:
		}
	}
}

// take gives what waits, as far as there is room for it in one request.
func (g *Gather[V]) take() []ask[V] {
	keys := 0
	for _, a := range g.waiting {
		keys += len(a.keys)
	}
	n := len(g.waiting)
	if keys > g.config.MaxKeys {
		n = g.fit()
	}
	for _, a := range g.waiting[:n] {
		a.call.waiting--
	}
	batch := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	return batch
}

// fit is how many of those that wait have room in one request, at least one: a key counts
// once.
func (g *Gather[V]) fit() int {
	keys := map[string]struct{}{}
	for n, a := range g.waiting {
		for _, key := range a.keys {
			keys[key] = struct{}{}
		}
		if n > 0 && len(keys) > g.config.MaxKeys {
			return n
		}
	}
	return len(g.waiting)
}

// leave has a call whose time is over wait for nothing.
func (g *Gather[V]) leave(ctx context.Context, c *call[V]) {
	g.waiting = slices.DeleteFunc(g.waiting, func(a ask[V]) bool { return a.call == c })
	c.left = true
	for i := range c.got {
		if one := &c.got[i]; one.Values == nil && one.Err == nil {
			one.Err = fmt.Errorf("looking up what others are asked for as well: %w", context.Cause(ctx))
		}
	}
}

// fly makes a request.
func (g *Gather[V]) fly(ctx context.Context, batch []ask[V]) []Got[V] {
	if slices.ContainsFunc(batch, func(a ask[V]) bool { return a.call != batch[0].call }) {
		ctx = context.WithoutCancel(ctx) // others are interested
	}
	ctx, cancel := context.WithTimeout(ctx, g.config.Timeout)
	defer cancel()
	return g.read(ctx, batch)
}

// read reads what several asks have at once, each key once.
func (g *Gather[V]) read(ctx context.Context, batch []ask[V]) []Got[V] {
	keys := make([]string, 0, len(batch))
	places := make(map[string]int, len(batch))
	for _, a := range batch {
		for _, key := range a.keys {
			if _, ok := places[key]; !ok {
				places[key] = len(keys)
				keys = append(keys, key)
			}
		}
	}
	values, err := g.config.Read(ctx, keys)
	if err == nil && len(values) != len(keys) {
		err = fmt.Errorf("%w: %d values of %d keys", ErrBadAnswer, len(values), len(keys))
	}
	if err != nil && len(batch) > 1 && g.config.Alone(err) {
		half := len(batch) / 2
		return append(g.read(ctx, batch[:half]), g.read(ctx, batch[half:])...)
	}
	got := make([]Got[V], len(batch))
	for i, a := range batch {
		if err != nil {
			got[i].Err = err
			continue
		}
		got[i].Values = make([]V, len(a.keys))
		for j, key := range a.keys {
			got[i].Values[j] = values[places[key]]
		}
	}
	return got
}

// answer gives each ask what there is of it.
func answer[V any](batch []ask[V], got []Got[V]) {
	for i, a := range batch {
		if a.call.left {
			continue
		}
		a.call.got[a.at] = got[i]
		if a.call.open--; a.call.open == 0 {
			close(a.call.done)
		}
	}
}
