// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/bench/await"
	"github.com/waggle-mesh/waggle/ipcache"
)

// missWatch tells when addresses are in an agent's map. It looks for those that are waited
// for, and no others, from outside of the agent.
type missWatch struct {
	target *ebpf.Map
	end    context.CancelFunc
	run    sync.WaitGroup
	// looks counts them.
	looks atomic.Int64

	mu      sync.Mutex
	watch   *await.Watch
	waiting map[await.Entry]chan<- time.Duration
	failed  error
}

// lookForMisses is the least time between two looks. Latencies are too long by the time
// between two at most; to look without a pause would take a processor from those who are
// measured.
const lookForMisses = 200 * time.Microsecond

// watchMisses looks until stop, which closes the map, for so many at a time.
func watchMisses(target *ebpf.Map, room int) (*missWatch, error) {
	watch, err := await.New(target, room)
	if err != nil {
		return nil, errors.Join(err, target.Close())
	}
	ctx, end := context.WithCancel(context.Background())
	w := &missWatch{target: target, end: end, watch: watch, waiting: map[await.Entry]chan<- time.Duration{}}
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
	return w, nil
}

// stop ends it. The error is that of a look.
func (w *missWatch) stop() error {
	w.end()
	w.run.Wait()
	return errors.Join(w.failed, w.watch.Close(), w.target.Close())
}

// expect gives what is told when an address has this identity: by await.Now.
func (w *missWatch) expect(prefix netip.Prefix, identity uint32) (<-chan time.Duration, error) {
	key, _ := ipcache.NewKey(prefix)
	entry := await.Entry{Key: key, Identity: identity}
	come := make(chan time.Duration, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.failed, w.watch.Expect(entry)); err != nil {
		return nil, err
	}
	w.waiting[entry] = come
	return come, nil
}

func (w *missWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks.Add(1)
	if w.failed != nil {
		return
	}
	w.failed = w.watch.Look(func(e await.Entry, at time.Duration) {
		w.waiting[e] <- at
		delete(w.waiting, e)
	})
}
