// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import "sync"

// flights has each key asked for once at a time, many of them by one question, which is
// what golang.org/x/sync/singleflight doesn't do. Its methods are safe for concurrent use.
type flights struct {
	mu    sync.Mutex
	byKey map[string]*flight
}

// flight is a look-up that is under way.
type flight struct {
	done chan struct{}
	result
}

// join gives the flights that others have begun, by the places of their keys, and the
// places of those that are to be begun, and landed, by whoever asks here. A key that is
// empty or atHand isn't looked up. atHand is asked while no flight lands: what has landed
// before can be at hand.
func (f *flights) join(keys []string, atHand func(i int) bool) (joined map[int]*flight, begun []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, key := range keys {
		if key == "" {
			continue
		}
		if under, ok := f.byKey[key]; ok {
			if joined == nil {
				joined = make(map[int]*flight)
			}
			joined[i] = under
			continue
		}
		if atHand(i) {
			continue
		}
		// Even who begins it waits for it: a request may name a key twice.
		under := &flight{done: make(chan struct{})}
		f.byKey[key] = under
		if joined == nil {
			joined = make(map[int]*flight)
		}
		joined[i] = under
		begun = append(begun, i)
	}
	return joined, begun
}

// land ends one.
func (f *flights) land(key string, r result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	under := f.byKey[key]
	delete(f.byKey, key)
	under.result = r
	close(under.done)
}
