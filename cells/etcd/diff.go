// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// mirror is what a Reader has told its Observer: for each key, a hash of the
// last value. It turns what an etcd says (pages of a list, watch events) into
// what is new about it. It does no I/O.
//
// Values are told apart by a 64-bit hash, so that a mirror of a large prefix
// costs little more than its keys.
//
// Cost: one map access for each key of a page or event, and one allocation (the
// key) for each event that is emitted; BenchmarkMirror guards it.
type mirror struct {
	keys map[string]mirrored
	// pass numbers the lists: a key that the current one hasn't seen is stale.
	pass uint32
}

type mirrored struct {
	hash uint64
	pass uint32
	// again: emit it even if the value is the same (see Reader.Resend).
	again bool
}

func newMirror() *mirror { return &mirror{keys: make(map[string]mirrored)} }

// beginList starts a pass over the whole prefix.
func (m *mirror) beginList() { m.pass++ }

// page takes one page of the current list and appends what is new to events.
func (m *mirror) page(events []Event, prefixLen int, kvs []*mvccpb.KeyValue) []Event {
	for _, kv := range kvs {
		events = m.put(events, kv.Key[prefixLen:], kv.Value)
	}
	return events
}

// put takes one key's value, from a list or a watch.
func (m *mirror) put(events []Event, key, value []byte) []Event {
	hash := xxhash.Sum64(value)
	old, ok := m.keys[string(key)]
	if ok && old.hash == hash && !old.again {
		if old.pass != m.pass {
			old.pass = m.pass
			m.keys[string(key)] = old
		}
		return events
	}
	name := string(key)
	m.keys[name] = mirrored{hash: hash, pass: m.pass}
	return append(events, Event{Key: name, Value: value, New: !ok})
}

// delete takes one deletion from a watch; of an unknown key it is no event.
func (m *mirror) delete(events []Event, key []byte) []Event {
	if _, ok := m.keys[string(key)]; !ok {
		return events
	}
	name := string(key)
	delete(m.keys, name)
	return append(events, Event{Key: name, Deleted: true})
}

// stale removes the keys that the finished list has not seen and appends their
// deletions, up to max at a time; more says that there are others.
func (m *mirror) stale(events []Event, max int) (out []Event, more bool) {
	for name, k := range m.keys {
		if k.pass == m.pass {
			continue
		}
		if len(events) == max {
			return events, true
		}
		delete(m.keys, name)
		events = append(events, Event{Key: name, Deleted: true})
	}
	return events, false
}

// forget makes the next list emit these keys (nil: all) even if unchanged.
func (m *mirror) forget(keys []string) {
	mark := func(name string) {
		if k, ok := m.keys[name]; ok {
			k.again = true
			m.keys[name] = k
		}
	}
	if keys == nil {
		for name := range m.keys {
			mark(name)
		}
		return
	}
	for _, name := range keys {
		mark(name)
	}
}
