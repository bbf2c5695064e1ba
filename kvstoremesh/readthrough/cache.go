// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"k8s.io/utils/clock"
)

const (
	// cacheEntries and cacheBytes bound what is kept: the look-ups of some seconds of
	// a whole mesh, of 200 bytes each. A source can make its values as large as
	// wire.MaxLookupBytes.
	cacheEntries = 1 << 15
	cacheBytes   = 16 << 20
	// absentTTL is how long at most it is said that there is nothing: TCP sends its first
	// packet again after a second, by when an agent that was told so, and then keeps it
	// itself for half a second, is to hear of an endpoint that was made meanwhile.
	absentTTL = 250 * time.Millisecond
	// entryBytes is about what an entry takes beside its value.
	entryBytes = 256
)

// cache keeps answers, found and not found, for a moment. Its methods are safe for
// concurrent use.
//
// The library's own cache with a TTL has a goroutine that can't be ended. Here none
// is renewed, so that what is oldest goes when something is added and its time is over;
// an absence, whose time is shorter, with what is older than it.
type cache struct {
	ttl   time.Duration
	clock clock.PassiveClock

	mu      sync.Mutex
	answers *simplelru.LRU[lookupKey, cached]
	bytes   int
}

type cached struct {
	answer
	until time.Time
}

func newCache(ttl time.Duration, clock clock.PassiveClock) *cache {
	c := &cache{ttl: ttl, clock: clock}
	// The error is for a size that isn't positive.
	c.answers, _ = simplelru.NewLRU(cacheEntries, func(key lookupKey, one cached) { c.bytes -= one.size(key) })
	return c
}

// get gives what was put there less than its time ago.
func (c *cache) get(key lookupKey) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Not Get, which would make it the youngest.
	one, ok := c.answers.Peek(key)
	if !ok || !c.clock.Now().Before(one.until) {
		return answer{}, false
	}
	return one.answer, true
}

// put keeps an answer, in place of what there was.
func (c *cache) put(key lookupKey, a answer) {
	if c.ttl == 0 {
		return
	}
	now, ttl := c.clock.Now(), c.ttl
	if a.kv == nil {
		ttl = min(ttl, absentTTL)
	}
	one := cached{a, now.Add(ttl)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers.Remove(key)
	c.bytes += one.size(key)
	c.answers.Add(key, one)
	for {
		_, oldest, ok := c.answers.GetOldest()
		if !ok || c.bytes <= cacheBytes && now.Before(oldest.until) {
			return
		}
		c.answers.RemoveOldest()
	}
}

// size is about how many bytes are kept.
func (c *cache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(c.bytes)
}

func (one cached) size(of lookupKey) int {
	size := entryBytes + len(of.key)
	if one.kv != nil {
		size += len(one.kv.Key) + len(one.kv.Value)
	}
	return size
}
