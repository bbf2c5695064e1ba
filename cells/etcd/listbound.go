// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

const (
	// listPatience is how long a list may go without asking for its next page
	// before its place is given to another. Taking a page in is a matter of
	// milliseconds; a client that died in the middle of a list doesn't say so.
	listPatience = 5 * time.Second
	// firstGuess is how long a list is taken to last before one has ended.
	firstGuess = 100 * time.Millisecond
)

// ListBound bounds how many lists an etcd serves at once, so that agents which
// come back together, a replica having died, are served one after the other, each
// in the time that a list takes, and not all at once in the time that all take:
// the memory for pages is bounded, and so is what watches and writes wait for
// (BenchmarkHerd).
//
// A list is all of its pages. It takes a place with its first one and keeps it up
// to the last, so that a large one, once begun, isn't held up by others that begin
// (its revision would be compacted away). Who finds no place is put off for about
// as long as those who wait will take (see turn), rather than left waiting:
// a request that waits has a deadline, and costs memory here.
//
// Any read of a range is a list. Reads of single keys, watches and writes are
// never put off, nor are reads within a transaction: the bound is against herds,
// not against attacks.
type ListBound struct {
	limit int
	now   func() time.Time

	mu sync.Mutex
	// open counts the lists that have a place.
	open int
	// between has those of them that are between two pages, and when each is given
	// up. Clients that can't be told apart (over a Unix socket) may share a list's
	// identity; they have a time each.
	between map[listID][]openList
	// duration is how long a list takes, smoothed.
	duration time.Duration
	// waiting has those who were put off and not yet admitted, and when they are
	// forgotten; see turn.
	waiting map[listID]time.Time
	sweep   time.Time // when to look for those to forget
	stats   ListStats
}

// listID tells which list a page is of.
type listID struct {
	peer, end string
	revision  int64
}

// openList is one list with a place.
type openList struct {
	began, until time.Time
}

// ListStats are a ListBound's counters.
type ListStats struct {
	// Open is how many lists are under way, Peak the most that were at once.
	Open, Peak int
	// Ended, Postponed and Abandoned count lists that were served to their end, answers that
	// put one off, and lists that lost their place, not having asked for more.
	Ended, Postponed, Abandoned uint64
	// Duration is how long a list takes, smoothed.
	Duration time.Duration
}

// NewListBound makes a bound of so many lists, at least one.
func NewListBound(limit int) *ListBound {
	return &ListBound{
		limit: max(1, limit), now: time.Now, duration: firstGuess,
		between: make(map[listID][]openList), waiting: make(map[listID]time.Time),
	}
}

// ServerOption is for ServerConfig.GRPC.
func (b *ListBound) ServerOption() grpc.ServerOption { return grpc.ChainUnaryInterceptor(b.intercept) }

// Stats gives the counters.
func (b *ListBound) Stats() ListStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	stats := b.stats
	stats.Open, stats.Duration = b.open, b.duration
	return stats
}

func (b *ListBound) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	page, ok := req.(*pb.RangeRequest)
	if !ok || len(page.RangeEnd) == 0 {
		return handle(ctx, req)
	}
	id := listID{end: string(page.RangeEnd), revision: page.Revision}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		id.peer = p.Addr.String()
	}
	list, err := b.admit(id)
	if err != nil {
		return nil, err
	}
	resp, err := handle(ctx, req)
	answer, _ := resp.(*pb.RangeResponse)
	if err == nil && answer != nil && answer.More {
		id.revision = answer.Header.GetRevision()
		if page.Revision != 0 {
			id.revision = page.Revision // the header's is that of the etcd now
		}
		b.expect(id, list)
	} else {
		b.end(list, err == nil)
	}
	return resp, err
}

// admit gives a page's list its place: the one that it has, or a free one.
func (b *ListBound) admit(id listID) (openList, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if lists := b.between[id]; len(lists) > 0 {
		b.setBetween(id, lists[1:])
		return lists[0], nil
	}
	if b.open >= b.limit {
		b.giveUp(now)
	}
	if b.open >= b.limit {
		b.stats.Postponed++
		return openList{}, postpone(b.limit, b.turn(id, now))
	}
	delete(b.waiting, id)
	b.open++
	b.stats.Peak = max(b.stats.Peak, b.open)
	return openList{began: now}, nil
}

// expect keeps the place of a list that has more pages.
func (b *ListBound) expect(id listID, list openList) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list.until = b.now().Add(listPatience)
	b.setBetween(id, append(b.between[id], list))
}

// end frees the place of a list whose last page was read, or whose reading failed.
func (b *ListBound) end(list openList, read bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if !read {
		return
	}
	b.stats.Ended++
	b.duration += (b.now().Sub(list.began) - b.duration) / 8
}

// giveUp frees the places of lists that nobody has continued.
func (b *ListBound) giveUp(now time.Time) {
	for id, lists := range b.between {
		left := lists
		for len(left) > 0 && left[0].until.Before(now) { // oldest first
			left = left[1:]
		}
		b.open -= len(lists) - len(left)
		b.stats.Abandoned += uint64(len(lists) - len(left))
		b.setBetween(id, left)
	}
}

func (b *ListBound) setBetween(id listID, lists []openList) {
	if len(lists) == 0 {
		delete(b.between, id)
		return
	}
	b.between[id] = lists
}

// turn is how long somebody who is put off now should stay away: a random part of
// the time in which all who wait can be served, so that they come back spread over
// it, about as fast as places become free. Who comes too early, the estimate having
// been too low, is given another part of what is left, and isn't counted twice.
func (b *ListBound) turn(id listID, now time.Time) time.Duration {
	if now.After(b.sweep) {
		maps.DeleteFunc(b.waiting, func(_ listID, until time.Time) bool { return until.Before(now) })
		b.sweep = now.Add(maxPostponement)
	}
	b.waiting[id] = now.Add(2 * maxPostponement) // or it has gone elsewhere
	each := b.duration / time.Duration(b.limit)
	delay := each + time.Duration(rand.Float64()*float64(each)*float64(len(b.waiting)))
	return min(max(delay, minPostponement), maxPostponement)
}
