// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"sync"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// lookupKey is what an answer is known by, in the cache and on its way: which connection to
// a cluster gives it, and what was looked up.
type lookupKey struct {
	link     uint64 // link.serial
	resource wire.Resource
	key      string
}

// flights has each key asked for once at a time, many of them by one question, which is
// what golang.org/x/sync/singleflight doesn't do. Its methods are safe for concurrent use.
type flights struct {
	mu    sync.Mutex
	byKey map[lookupKey]*flight
}

// flight is a look-up that is under way.
type flight struct {
	landed <-chan struct{} // closed when there is a result; one for all that begin together
	result
}

// join gives the flight of each key: one that others have begun, or a new one, which whoever
// asks here is to begin. Of what is atHand it is nil. atHand is asked while no flight lands:
// what has landed before can be at hand.
//
// begun are the places of those to be begun, which are landed together by land; it isn't
// called if there are none.
func (f *flights) join(keys []lookupKey, atHand func(i int) bool) (joined []*flight, begun []int, land func([]result)) {
	joined = make([]*flight, len(keys))
	var fleet []flight
	var landed chan struct{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, key := range keys {
		if under, ok := f.byKey[key]; ok {
			joined[i] = under
			continue
		}
		if atHand(i) {
			continue
		}
		if fleet == nil {
			fleet, begun, landed = make([]flight, 0, len(keys)-i), make([]int, 0, len(keys)-i), make(chan struct{})
		}
		// Even who begins it waits for it: a request may name a key twice.
		fleet = append(fleet, flight{landed: landed})
		joined[i] = &fleet[len(fleet)-1]
		f.byKey[key] = joined[i]
		begun = append(begun, i)
	}
	return joined, begun, func(results []result) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for n, i := range begun {
			delete(f.byKey, keys[i])
			fleet[n].result = results[n]
		}
		close(landed)
	}
}
