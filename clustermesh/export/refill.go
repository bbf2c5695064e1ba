// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"sync"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// refill is what is to be encoded again of one resource, because etcd lost it.
type refill struct {
	all  bool
	keys map[string]struct{}
	// calls is how often the Writer has asked so far, for Scope.CompleteAfter.
	calls uint64
}

// refills gathers what the Writer asks for, from its goroutine, until the
// exporter's next round. What waits is bounded by the number of keys.
type refills struct {
	mu      sync.Mutex
	pending map[wire.Resource]refill
	calls   map[wire.Resource]uint64
	asked   chan struct{} // closed at the first request since take
}

func newRefills() *refills {
	return &refills{pending: map[wire.Resource]refill{}, calls: map[wire.Resource]uint64{}, asked: make(chan struct{})}
}

// ask notes keys (nil: all) of a resource. It never blocks.
func (r *refills) ask(resource wire.Resource, keys []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	want := r.pending[resource]
	if want.keys == nil {
		want.keys = make(map[string]struct{}, len(keys))
	}
	want.all = want.all || keys == nil
	for _, key := range keys {
		want.keys[key] = struct{}{}
	}
	r.calls[resource]++
	want.calls = r.calls[resource]
	if len(r.pending) == 0 {
		close(r.asked)
	}
	r.pending[resource] = want
}

// take gives what was asked for, and a channel that is closed when there is more.
func (r *refills) take() (map[wire.Resource]refill, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) == 0 {
		return nil, r.asked
	}
	taken := r.pending
	r.pending, r.asked = map[wire.Resource]refill{}, make(chan struct{})
	return taken, r.asked
}
