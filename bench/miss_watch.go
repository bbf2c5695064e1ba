// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/ipcache"
)

// missWatch tells when addresses are in an agent's map. It looks up those that are waited
// for, and no others, from outside of the agent: a lookup is one system call of a
// microsecond or two.
type missWatch struct {
	target *ebpf.Map
	end    context.CancelFunc
	run    sync.WaitGroup
	// looks counts the rounds of lookups.
	looks atomic.Int64

	mu      sync.Mutex
	waiting map[ipcache.Key]missing
	failed  error
}

type missing struct {
	identity uint32
	found    chan<- time.Time
}

// lookForMisses is the least time between two rounds of lookups. Latencies are too long
// by the time between two rounds at most; to look without a pause would take a processor
// from those who are measured.
const lookForMisses = 200 * time.Microsecond

// watchMisses looks until stop, and then closes the map.
func watchMisses(target *ebpf.Map) *missWatch {
	ctx, end := context.WithCancel(context.Background())
	w := &missWatch{target: target, end: end, waiting: map[ipcache.Key]missing{}}
	w.run.Go(func() {
		ticker := time.NewTicker(lookForMisses)
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
func (w *missWatch) stop() error {
	w.end()
	w.run.Wait()
	return errors.Join(w.failed, w.target.Close())
}

// expect gives what is told when an address has this identity.
func (w *missWatch) expect(prefix netip.Prefix, identity uint32) <-chan time.Time {
	key, _ := ipcache.NewKey(prefix)
	found := make(chan time.Time, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[key] = missing{identity, found}
	return found
}

func (w *missWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks.Add(1)
	for key, m := range w.waiting {
		var value ipcache.Value
		// An address without an entry of its own has that of its pod CIDR.
		if err := w.target.Lookup(&key, &value); err != nil {
			if !errors.Is(err, ebpf.ErrKeyNotExist) && w.failed == nil {
				w.failed = fmt.Errorf("looking up %s in the agent's map: %w", key, err)
			}
			continue
		}
		if value.Identity == m.identity {
			m.found <- time.Now()
			delete(w.waiting, key)
		}
	}
}
