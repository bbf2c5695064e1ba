// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// memory is what a Reader remembers of what it told its Observer, and so decides
// what is new about what an etcd says (pages of a list, watch events).
type memory interface {
	// beginList starts a pass over the whole prefix.
	beginList()
	// page takes one page of the current list and appends what is new to events.
	page(events []Event, prefixLen int, kvs []*mvccpb.KeyValue) []Event
	// put takes one key's value from a watch, and delete one deletion.
	put(events []Event, key, value []byte) []Event
	delete(events []Event, key []byte) []Event
	// stale removes the keys that the finished list has not seen and appends their
	// deletions, up to max at a time; more says that there are others.
	stale(events []Event, max int) (out []Event, more bool)
	// forget makes the next list emit these keys (nil: all) even if unchanged.
	forget(keys []string)
	// remember notes a key's value that the Observer has already.
	remember(key string, value []byte)
	// size is the number of keys that are remembered.
	size() int
}

// passthrough remembers nothing (see ReaderConfig.Passthrough): all is news.
type passthrough struct{}

func (passthrough) beginList() {}

// keysAtOnce is the number of keys of a page that share an allocation. It is small
// since all of them stay in memory as long as one is known.
const keysAtOnce = 16

func (passthrough) page(events []Event, prefixLen int, kvs []*mvccpb.KeyValue) []Event {
	events = slices.Grow(events, len(kvs))
	var joined []byte
	for chunk := range slices.Chunk(kvs, keysAtOnce) {
		joined = joined[:0]
		for _, kv := range chunk {
			joined = append(joined, kv.Key[prefixLen:]...)
		}
		keys := string(joined)
		for _, kv := range chunk {
			length := len(kv.Key) - prefixLen
			events = append(events, Event{Key: keys[:length], Value: kv.Value})
			keys = keys[length:]
		}
	}
	return events
}

func (passthrough) put(events []Event, key, value []byte) []Event {
	return append(events, Event{Key: string(key), Value: value})
}

func (passthrough) delete(events []Event, key []byte) []Event {
	return append(events, Event{Key: string(key), Deleted: true})
}

func (passthrough) stale(events []Event, _ int) ([]Event, bool) { return events, false }

func (passthrough) forget([]string) {}

func (passthrough) remember(string, []byte) {}

func (passthrough) size() int { return 0 }

// mirror is the memory of all keys: for each one, a hash of the last value. It
// turns what an etcd says (pages of a list, watch events) into what is new about
// it. It does no I/O.
//
// Values are told apart by a 64-bit hash, so that a mirror of a large prefix
// costs little more than its keys (see keyMap).
//
// Cost: one map access for each key of a page or event, and one allocation (the
// key) for each event that is emitted; BenchmarkMirror guards it.
type mirror struct {
	keys *keyMap[mirrored]
	// pass numbers the lists: a key that the current one hasn't seen is stale.
	pass uint32
}

type mirrored struct {
	hash uint64
	pass uint32
	// again: emit it even if the value is the same (see Reader.Resend).
	again bool
}

func newMirror() *mirror { return &mirror{keys: newKeyMap[mirrored]()} }

func (m *mirror) beginList() { m.pass++ }

func (m *mirror) size() int { return m.keys.len() }

func (m *mirror) remember(key string, value []byte) {
	known, _ := m.keys.put(key)
	*known = mirrored{hash: xxhash.Sum64(value), pass: m.pass}
}

func (m *mirror) page(events []Event, prefixLen int, kvs []*mvccpb.KeyValue) []Event {
	for _, kv := range kvs {
		events = m.put(events, kv.Key[prefixLen:], kv.Value)
	}
	return events
}

// put takes one key's value, from a list or a watch.
func (m *mirror) put(events []Event, key, value []byte) []Event {
	hash := xxhash.Sum64(value)
	known, inserted := m.keys.put(viewOf(key))
	if !inserted && known.hash == hash && !known.again {
		known.pass = m.pass
		return events
	}
	*known = mirrored{hash: hash, pass: m.pass}
	return append(events, Event{Key: string(key), Value: value, New: inserted})
}

// delete takes one deletion from a watch; of an unknown key it is no event.
func (m *mirror) delete(events []Event, key []byte) []Event {
	if !m.keys.delete(viewOf(key)) {
		return events
	}
	return append(events, Event{Key: string(key), Deleted: true})
}

func (m *mirror) stale(events []Event, max int) (out []Event, more bool) {
	for key, known := range m.keys.all() {
		if known.pass == m.pass {
			continue
		}
		if len(events) == max {
			return events, true
		}
		events = append(events, Event{Key: strings.Clone(key), Deleted: true})
		m.keys.delete(key)
	}
	return events, false
}

func (m *mirror) forget(keys []string) {
	if keys == nil {
		for _, known := range m.keys.all() {
			known.again = true
		}
		return
	}
	for _, key := range keys {
		if known := m.keys.get(key); known != nil {
			known.again = true
		}
	}
}
