// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// WatchGroup is one watch of an etcd for Readers of several prefixes below one. A
// commit that touches all of them is then one message to this process instead of one
// for each Reader, and a message is what a watcher costs etcd (some 20 to 30 µs),
// whatever it holds. The Readers list, resume and relist each by itself.
//
// Its goroutines end with the contexts of the Readers' Runs, and with the Client.
//
// All Readers of a group are to be run with the same Client at a time. A Reader that
// joins late, from a revision that the watch has passed, has it begin there again, and
// the others don't see what they had. What a Reader hasn't taken yet is kept for it, as
// the client of etcd does for a watch, so that a slow one doesn't hold up the others.
type WatchGroup struct {
	prefix string

	mu      sync.Mutex
	current *groupWatch // nil: none runs
}

// NewWatchGroup makes a group for Readers whose prefixes begin with prefix, which
// ends in a slash. Whatever else is below it is sent to this process, too.
func NewWatchGroup(prefix string) *WatchGroup { return &WatchGroup{prefix: prefix} }

// groupWatch is what runs over one connection. Guarded by the group's mu.
type groupWatch struct {
	client     *Client
	generation uint64
	// metadata is a context that never ends, with the metadata of the Readers': by these
	// the client finds the stream when a Reader asks for progress.
	metadata context.Context
	members  map[*groupMember]struct{}
	// next is the first revision that wasn't handed out yet.
	next int64
	// watch numbers the watches of etcd, of which the last one counts, and cancel ends
	// it.
	watch  int
	cancel context.CancelFunc
}

// groupMember is one Reader's part.
type groupMember struct {
	prefix []byte
	// next is the first revision that it wants.
	next int64
	// out is closed when there will be no more.
	out chan clientv3.WatchResponse

	mu    sync.Mutex
	queue []clientv3.WatchResponse
	ended bool
	ready chan struct{}
}

// join has the changes of a prefix from a revision on delivered, until ctx ends. It
// gives what a watch of etcd with notifications of progress does; what ends the one
// watch ends it for all Readers. generation is that of the connection at which the
// Reader knows itself to be; see Client.Generation.
func (g *WatchGroup) join(ctx context.Context, client *Client, generation uint64, prefix string, from int64) <-chan clientv3.WatchResponse {
	m := &groupMember{prefix: []byte(prefix), next: from, out: make(chan clientv3.WatchResponse), ready: make(chan struct{}, 1)}
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.current
	if c == nil || c.client != client || c.generation != generation {
		if c != nil {
			g.endLocked(c)
		}
		c = &groupWatch{client: client, generation: generation, metadata: context.WithoutCancel(ctx), members: map[*groupMember]struct{}{}}
		g.current = c
	}
	if c.cancel == nil || from < c.next {
		for other := range c.members { // which was handed all that there is before
			other.next = max(other.next, c.next)
		}
		g.watchLocked(c, from)
	}
	c.members[m] = struct{}{}
	go func() {
		m.pump(ctx)
		g.leave(c, m)
	}()
	return m.out
}

// watchLocked has etcd send everything from a revision on, and nothing else any more.
func (g *WatchGroup) watchLocked(c *groupWatch, from int64) {
	if c.cancel != nil {
		c.cancel()
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(c.metadata)
	c.watch++
	c.next = from
	watch := c.watch
	go func() { // to make a watch waits for the server
		responses := c.client.etcd.Watch(ctx, g.prefix, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
		for resp := range responses {
			if !g.hand(c, watch, resp) {
				return
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if c.watch == watch {
			g.endLocked(c)
		}
	}()
}

// hand gives each Reader its part of a response, as one response; it is false when
// there is another watch by now.
//
// Cost: the events times the Readers, of which there are a handful.
func (g *WatchGroup) hand(c *groupWatch, watch int, resp clientv3.WatchResponse) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.watch != watch {
		return false
	}
	if resp.CompactRevision > 0 {
		return g.compacted(c, resp)
	}
	if len(resp.Events) == 0 || resp.Err() != nil {
		if resp.Err() == nil {
			c.next = max(c.next, resp.Header.Revision+1)
		}
		for m := range c.members {
			m.put(resp)
		}
		return true
	}
	for m := range c.members {
		part := resp
		part.Events = nil
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision >= m.next && bytes.HasPrefix(ev.Kv.Key, m.prefix) {
				part.Events = append(part.Events, ev)
			}
		}
		if len(part.Events) > 0 { // an empty one would be a notification of progress
			m.put(part)
		}
	}
	c.next = max(c.next, resp.Events[len(resp.Events)-1].Kv.ModRevision+1)
	return true
}

// compacted tells the Readers whose history is gone, and watches on for the others: of
// those that share a watch, one that comes from long ago is mostly the only one.
func (g *WatchGroup) compacted(c *groupWatch, resp clientv3.WatchResponse) bool {
	from := int64(0)
	for m := range c.members {
		if m.next <= resp.CompactRevision {
			m.put(resp)
			m.end()
			delete(c.members, m)
		} else if from == 0 || m.next < from {
			from = m.next
		}
	}
	if from == 0 {
		return true // the watch ends by itself
	}
	g.watchLocked(c, from)
	return false
}

// leave ends the watch with its last Reader.
func (g *WatchGroup) leave(c *groupWatch, m *groupMember) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(c.members, m)
	if len(c.members) == 0 {
		g.endLocked(c)
	}
}

// endLocked ends a watch, and with it what its Readers get.
func (g *WatchGroup) endLocked(c *groupWatch) {
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
	c.watch++
	for m := range c.members {
		m.end()
	}
	if g.current == c {
		g.current = nil
	}
}

func (m *groupMember) put(resp clientv3.WatchResponse) {
	m.mu.Lock()
	m.queue = append(m.queue, resp)
	m.mu.Unlock()
	m.wake()
}

func (m *groupMember) end() {
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	m.wake()
}

func (m *groupMember) wake() {
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// pump hands over what was put, until there is no more or ctx ends.
func (m *groupMember) pump(ctx context.Context) {
	defer close(m.out)
	for {
		m.mu.Lock()
		queue, ended := m.queue, m.ended
		m.queue = nil
		m.mu.Unlock()
		for _, resp := range queue {
			select {
			case m.out <- resp:
			case <-ctx.Done():
				return
			}
		}
		switch {
		case len(queue) > 0:
		case ended:
			return
		default:
			select {
			case <-m.ready:
			case <-ctx.Done():
				return
			}
		}
	}
}
