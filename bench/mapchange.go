// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/ipcache"
)

// mapChanges tells when changes have reached an agent's map. It looks up the
// entries that are to change, and no others, from outside of the agent: so the
// agent is the one that anybody runs, and what it does isn't slowed down by being
// measured. A lookup is one system call, of a microsecond or two.
type mapChanges struct {
	target *ebpf.Map
	end    context.CancelFunc
	run    sync.WaitGroup

	mu sync.Mutex
	// waiting are the changes that were sent and not seen, of each entry in the
	// order in which they were sent.
	waiting map[ipcache.Key][]change
	failed  error
}

// change is one that the map is to have.
type change struct {
	// identity is the one that the entry has after the change and didn't have before.
	identity uint32
	number   int
	book     *ledger
}

// lookForChanges is the time between two rounds of lookups, by which latencies
// may be too long.
const lookForChanges = time.Millisecond

// watchChanges looks for changes until stop.
func watchChanges(target *ebpf.Map) *mapChanges {
	ctx, end := context.WithCancel(context.Background())
	w := &mapChanges{target: target, end: end, waiting: map[ipcache.Key][]change{}}
	w.run.Go(func() {
		ticker := time.NewTicker(lookForChanges)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				w.look()
			}
		}
	})
	return w
}

// stop ends it. The error is that of a lookup.
func (w *mapChanges) stop() error {
	w.end()
	w.run.Wait()
	return w.failed
}

// expect is to be told of each change before it is written.
func (w *mapChanges) expect(key ipcache.Key, c change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[key] = append(w.waiting[key], c)
}

// look looks for all that are waiting.
func (w *mapChanges) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, changes := range w.waiting {
		var value ipcache.Value
		// An address without an entry of its own has that of a shorter prefix, or none.
		if err := w.target.Lookup(&key, &value); err != nil {
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				w.failed = fmt.Errorf("looking up %s in the agent's map: %w", key, err)
			}
			continue
		}
		at := time.Now()
		// The last one first: one that was overtaken is never seen.
		for i := len(changes) - 1; i >= 0; i-- {
			if changes[i].identity != value.Identity {
				continue
			}
			changes[i].book.arrive(changes[i].number, at)
			if changes = changes[i+1:]; len(changes) == 0 {
				delete(w.waiting, key)
			} else {
				w.waiting[key] = changes
			}
			break
		}
	}
}

// missing are some of the entries whose changes haven't been seen, for an error.
func (w *mapChanges) missing() (some []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, changes := range w.waiting {
		if len(some) == 5 {
			return append(some, "…")
		}
		some = append(some, fmt.Sprintf("%s (identity %d)", key, changes[len(changes)-1].identity))
	}
	return some
}
