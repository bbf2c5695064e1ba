// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"container/list"
	"net/netip"
)

// queue has the lookups that wait for their turn, one for each address. Each interface
// has a line of its own, of bounded length, and they are served in turn: whoever scans
// addresses waits for himself. A line is divided by cluster, so that one which can take
// no more lookups now holds up nobody else.
//
// When all lines together are full, the longest one gives way: its last lookup is
// dropped, for one of a shorter line. What is dropped is forgotten, and the kernel tells
// of the address again with the next packet after its interval.
//
// It is a state machine without I/O or clock, used by one goroutine at a time. push is
// O(1), but O(interfaces) once all is full. next is O(1) unless clusters aren't ready:
// then it looks at each pair of interface and cluster that has something, at the most.
type queue struct {
	limit, perInterface int

	byAddr map[netip.Addr]*lookup
	lines  map[uint32]*line
	// waiting is how many wait for a cluster, over all lines.
	waiting map[uint32]int
	// turns are the lines with something in them, in the order in which they are served.
	turns *list.List
}

// line is what waits of one interface.
type line struct {
	iface    uint32
	length   int
	clusters map[uint32]*part
	turns    *list.List // of *part
	element  *list.Element
}

// part is what waits of one interface for one cluster, oldest first.
type part struct {
	cluster uint32
	lookups *list.List
	element *list.Element
}

func newQueue(limit, perInterface int) *queue {
	return &queue{
		limit: limit, perInterface: perInterface,
		byAddr: map[netip.Addr]*lookup{}, lines: map[uint32]*line{}, waiting: map[uint32]int{}, turns: list.New(),
	}
}

func (q *queue) len() int { return len(q.byAddr) }

// get is the lookup that waits for an address, if any.
func (q *queue) get(addr netip.Addr) (*lookup, bool) {
	l, ok := q.byAddr[addr]
	return l, ok
}

// push puts a lookup at the end of its interface's line. Its address must not be
// waiting already. It returns the lookup that is dropped for it, which is this one if it
// isn't let in; nil if there was room.
func (q *queue) push(l *lookup) (dropped *lookup) {
	at := q.lines[l.iface]
	if at != nil && at.length >= q.perInterface {
		return l
	}
	if len(q.byAddr) >= q.limit {
		longest := q.longest()
		if at != nil && at.length+1 >= longest.length || longest.length <= 1 {
			return l
		}
		dropped = q.dropLast(longest)
		at = q.lines[l.iface]
	}
	if at == nil {
		at = &line{iface: l.iface, clusters: map[uint32]*part{}, turns: list.New()}
		at.element = q.turns.PushBack(at)
		q.lines[l.iface] = at
	}
	p := at.clusters[l.question.ClusterID]
	if p == nil {
		p = &part{cluster: l.question.ClusterID, lookups: list.New()}
		p.element = at.turns.PushBack(p)
		at.clusters[p.cluster] = p
	}
	p.lookups.PushBack(l)
	at.length++
	q.waiting[p.cluster]++
	q.byAddr[l.question.Addr] = l
	return dropped
}

// next takes the lookup whose turn it is, of a cluster that is ready.
func (q *queue) next(ready func(cluster uint32) bool) (*lookup, bool) {
	for e := q.turns.Front(); e != nil; e = e.Next() {
		at := e.Value.(*line)
		for f := at.turns.Front(); f != nil; f = f.Next() {
			p := f.Value.(*part)
			if !ready(p.cluster) {
				continue
			}
			at.turns.MoveToBack(f)
			q.turns.MoveToBack(e)
			return q.take(at, p, p.lookups.Front()), true
		}
	}
	return nil, false
}

// take removes one lookup, and what is empty then.
func (q *queue) take(at *line, p *part, e *list.Element) *lookup {
	l := p.lookups.Remove(e).(*lookup)
	delete(q.byAddr, l.question.Addr)
	if q.waiting[p.cluster]--; q.waiting[p.cluster] == 0 {
		delete(q.waiting, p.cluster)
	}
	if p.lookups.Len() == 0 {
		at.turns.Remove(p.element)
		delete(at.clusters, p.cluster)
	}
	if at.length--; at.length == 0 {
		q.turns.Remove(at.element)
		delete(q.lines, at.iface)
	}
	return l
}

func (q *queue) longest() *line {
	var longest *line
	for e := q.turns.Front(); e != nil; e = e.Next() {
		if at := e.Value.(*line); longest == nil || at.length > longest.length {
			longest = at
		}
	}
	return longest
}

// dropLast removes the newest lookup of the line's longest part.
func (q *queue) dropLast(at *line) *lookup {
	var longest *part
	for e := at.turns.Front(); e != nil; e = e.Next() {
		if p := e.Value.(*part); longest == nil || p.lookups.Len() > longest.lookups.Len() {
			longest = p
		}
	}
	return q.take(at, longest, longest.lookups.Back())
}

// full says whether a line takes no more, whatever is in the others.
func (q *queue) full(iface uint32) bool {
	at := q.lines[iface]
	return at != nil && at.length >= q.perInterface || len(q.byAddr) >= q.limit
}
