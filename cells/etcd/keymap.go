// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"encoding/binary"
	"hash/maphash"
	"iter"
	"unsafe"
)

// keyMap is a map from keys to small values without pointers, for as many keys as
// a mesh has: 500,000 in an agent. Go's own takes a string, and so an object of its
// own, for each of them: some 100 bytes where this takes 40, and work for the
// garbage collector, which here finds nothing to follow (BenchmarkKeyMap).
//
// Keys lie one behind the other in an arena, values in a list, and an open hash
// table of 32-bit numbers leads from the one to the other. Its hash has a seed:
// keys come from other clusters, which might choose them to collide.
//
// A pointer to a value is good until the next insert or delete. It isn't safe for
// concurrent use.
type keyMap[V any] struct {
	seed maphash.Seed
	// table has, at the hash of each key or the next free place after it, the
	// number of its entry plus one. Its length is a power of two.
	table   []uint32
	entries [][]keyMapEntry[V]
	// made is the number of entries, used or free; free lists the free ones.
	made uint32
	free []uint32
	used int

	arena [][]byte
	// dead is how many bytes of the arena belong to no key any more, of size.
	dead, size int
}

type keyMapEntry[V any] struct {
	value V
	// at is where the key lies: the number of a chunk of the arena, and the byte
	// in it. nowhere marks an entry that is free.
	at uint32
}

const (
	entryBits = 10 // entries of a chunk: 1,024
	arenaBits = 14 // bytes of a chunk: 16 KiB; a longer key has one of its own
	nowhere   = ^uint32(0)
)

func newKeyMap[V any]() *keyMap[V] { return &keyMap[V]{seed: maphash.MakeSeed()} }

func (m *keyMap[V]) len() int { return m.used }

// get gives a key's value, nil if there is none.
func (m *keyMap[V]) get(key string) *V {
	if m.used == 0 {
		return nil
	}
	if _, n := m.find(key); n != 0 {
		return &m.entry(n - 1).value
	}
	return nil
}

// put gives a key's value, a new one if there is none.
func (m *keyMap[V]) put(key string) (value *V, inserted bool) {
	// At most three quarters of the table are taken.
	if m.used >= len(m.table)/4*3 {
		m.grow()
	}
	slot, n := m.find(key)
	if n != 0 {
		return &m.entry(n - 1).value, false
	}
	n = m.newEntry()
	*m.entry(n) = keyMapEntry[V]{at: m.store(key)}
	m.table[slot] = n + 1
	m.used++
	return &m.entry(n).value, true
}

// delete says whether the key was there.
func (m *keyMap[V]) delete(key string) bool {
	if m.used == 0 {
		return false
	}
	slot, n := m.find(key)
	if n == 0 {
		return false
	}
	// What follows closes the gap, unless it lies at its hash or between.
	mask := uint32(len(m.table) - 1)
	for next := (slot + 1) & mask; m.table[next] != 0; next = (next + 1) & mask {
		home := m.home(m.key(m.entry(m.table[next] - 1).at))
		if (next-home)&mask >= (next-slot)&mask {
			m.table[slot] = m.table[next]
			slot = next
		}
	}
	m.table[slot] = 0
	*m.entry(n - 1) = keyMapEntry[V]{at: nowhere}
	m.free = append(m.free, n-1)
	m.used--
	m.dead += len(key) + uvarintLen(len(key))
	if m.dead > m.size/2 && m.dead > 1<<arenaBits {
		m.compact()
	}
	return true
}

// all yields every key and its value. The one that was yielded may be deleted
// meanwhile; nothing may be inserted.
func (m *keyMap[V]) all() iter.Seq2[string, *V] {
	return func(yield func(string, *V) bool) {
		for n := range m.made {
			// The key is a copy: a deletion may move the arena.
			if e := m.entry(n); e.at != nowhere && !yield(m.key(e.at), &e.value) {
				return
			}
		}
	}
}

// find gives the place of a key in the table and the number of its entry plus
// one, or the place where it would be and 0. The table must not be full.
func (m *keyMap[V]) find(key string) (slot, n uint32) {
	mask := uint32(len(m.table) - 1)
	for slot = m.home(key); ; slot = (slot + 1) & mask {
		if n = m.table[slot]; n == 0 || m.key(m.entry(n-1).at) == key {
			return slot, n
		}
	}
}

func (m *keyMap[V]) home(key string) uint32 {
	return uint32(maphash.String(m.seed, key)) & uint32(len(m.table)-1)
}

func (m *keyMap[V]) entry(n uint32) *keyMapEntry[V] {
	return &m.entries[n>>entryBits][n&(1<<entryBits-1)]
}

// grow doubles the table.
func (m *keyMap[V]) grow() {
	m.table = make([]uint32, max(8, 2*len(m.table)))
	mask := uint32(len(m.table) - 1)
	for n := range m.made {
		at := m.entry(n).at
		if at == nowhere {
			continue
		}
		slot := m.home(m.key(at))
		for m.table[slot] != 0 {
			slot = (slot + 1) & mask
		}
		m.table[slot] = n + 1
	}
}

// newEntry gives the number of an entry that isn't in use.
func (m *keyMap[V]) newEntry() uint32 {
	if last := len(m.free) - 1; last >= 0 {
		n := m.free[last]
		m.free = m.free[:last]
		return n
	}
	n := m.made
	chunk := int(n >> entryBits)
	if chunk == len(m.entries) {
		var entries []keyMapEntry[V]
		if chunk > 0 { // the first one begins small: most maps stay so
			entries = make([]keyMapEntry[V], 0, 1<<entryBits)
		}
		m.entries = append(m.entries, entries)
	}
	m.entries[chunk] = append(m.entries[chunk], keyMapEntry[V]{})
	m.made++
	return n
}

// store puts a key into the arena: its length, then its bytes.
func (m *keyMap[V]) store(key string) (at uint32) {
	need := len(key) + uvarintLen(len(key))
	last := len(m.arena) - 1
	if last < 0 || len(m.arena[last])+need > 1<<arenaBits {
		var chunk []byte
		if last >= 0 || need > 1<<arenaBits {
			chunk = make([]byte, 0, max(need, 1<<arenaBits))
		}
		m.arena = append(m.arena, chunk)
		last++
	}
	chunk := m.arena[last]
	at = uint32(last)<<arenaBits | uint32(len(chunk))
	m.arena[last] = append(binary.AppendUvarint(chunk, uint64(len(key))), key...)
	m.size += need
	return at
}

// key is a view of a key in the arena, of which no byte ever changes.
func (m *keyMap[V]) key(at uint32) string {
	chunk := m.arena[at>>arenaBits][at&(1<<arenaBits-1):]
	length, n := binary.Uvarint(chunk)
	if length == 0 {
		return ""
	}
	return unsafe.String(&chunk[n], length)
}

// compact makes the arena anew, without what is dead.
func (m *keyMap[V]) compact() {
	old := *m
	m.arena, m.dead, m.size = nil, 0, 0
	for n := range m.made {
		if e := m.entry(n); e.at != nowhere {
			e.at = m.store(old.key(e.at))
		}
	}
}

func uvarintLen(n int) int {
	length := 1
	for ; n >= 0x80; n >>= 7 {
		length++
	}
	return length
}

// viewOf is b as a string, for calls that don't keep it.
func viewOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
