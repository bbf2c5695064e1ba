// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"sync"
)

// refill is what is to be encoded again of one place, because etcd lost it.
type refill struct {
	all  bool
	keys map[string]struct{}
	// calls is how often the Writer has asked so far, for Scope.CompleteAfter, and
	// losses how often it asked for everything, which it asks all places for.
	calls, losses uint64
}

// news is what the Writer has told since it was last asked.
type news struct {
	refills map[placeName]refill
	// settled are keys that were waited for in a place, and of which all that was queued
	// there then is committed.
	settled map[placeName]map[string]struct{}
	// released are likewise the keys of endpoints that departed.
	released map[string]struct{}
	// pruned are the places that a completion is committed of, and after how many
	// losses.
	pruned map[placeName]uint64
}

func (n *news) isEmpty() bool {
	return len(n.refills)+len(n.settled)+len(n.released)+len(n.pruned) == 0
}

// inbox gathers what the Writer tells, from its goroutine, until the exporter's
// next round. What waits is bounded by the number of keys. Its methods never block.
type inbox struct {
	mu            sync.Mutex
	news          news
	calls, losses map[placeName]uint64
	arrived       chan struct{} // closed at the first news since take
}

func newInbox() *inbox {
	return &inbox{news: emptyNews(), calls: map[placeName]uint64{}, losses: map[placeName]uint64{}, arrived: make(chan struct{})}
}

func emptyNews() news {
	return news{
		refills: map[placeName]refill{}, settled: map[placeName]map[string]struct{}{},
		released: map[string]struct{}{}, pruned: map[placeName]uint64{},
	}
}

// note applies fn and wakes who waits.
func (i *inbox) note(fn func(*news)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.news.isEmpty() {
		close(i.arrived)
	}
	fn(&i.news)
}

// refill notes keys (nil: all) that etcd has lost.
func (i *inbox) refill(place placeName, keys []string) {
	i.note(func(n *news) {
		want := n.refills[place]
		if want.keys == nil {
			want.keys = make(map[string]struct{}, len(keys))
		}
		for _, key := range keys {
			want.keys[key] = struct{}{}
		}
		if keys == nil {
			want.all = true
			i.losses[place]++
		}
		i.calls[place]++
		want.calls, want.losses = i.calls[place], i.losses[place]
		n.refills[place] = want
	})
}

func (i *inbox) settled(place placeName, key string) {
	i.note(func(n *news) {
		if n.settled[place] == nil {
			n.settled[place] = map[string]struct{}{}
		}
		n.settled[place][key] = struct{}{}
	})
}

func (i *inbox) released(key string) {
	i.note(func(n *news) { n.released[key] = struct{}{} })
}

func (i *inbox) pruned(place placeName, losses uint64) {
	i.note(func(n *news) { n.pruned[place] = losses })
}

// take gives the news, and a channel that is closed when there are more.
func (i *inbox) take() (news, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.news.isEmpty() {
		return news{}, i.arrived
	}
	taken := i.news
	i.news, i.arrived = emptyNews(), make(chan struct{})
	return taken, i.arrived
}
