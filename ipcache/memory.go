// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"iter"
	"net/netip"
	"sync"
)

// memoryMap is a Map in the memory of this process, for where BPF isn't
// permitted. No datapath reads it.
type memoryMap struct {
	capacity int

	mu      sync.RWMutex
	entries map[Key]Value
	// lengths counts the entries of each prefix length, so that a lookup tries
	// only lengths that exist.
	lengths [2][129]int
}

var _ Map = (*memoryMap)(nil)

// newMemoryMap makes an empty map for so many entries.
func newMemoryMap(capacity int) *memoryMap {
	return &memoryMap{capacity: capacity, entries: map[Key]Value{}}
}

// length is the counter of the key's family and length.
func (m *memoryMap) length(k Key) *int {
	return &m.lengths[k.Family-familyIPv4][k.PrefixLen-staticPrefixBits]
}

// Update implements Map.
func (m *memoryMap) Update(entries []Entry) []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for i, entry := range entries {
		if _, exists := m.entries[entry.Key]; !exists {
			if len(m.entries) >= m.capacity {
				errs = setError(errs, len(entries), i, ErrFull)
				continue
			}
			*m.length(entry.Key)++
		}
		m.entries[entry.Key] = entry.Value
	}
	return errs
}

// Delete implements Map.
func (m *memoryMap) Delete(keys []Key) []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		if _, exists := m.entries[key]; exists {
			delete(m.entries, key)
			*m.length(key)--
		}
	}
	return nil
}

// Lookup implements Map.
func (m *memoryMap) Lookup(addr netip.Addr) (Entry, bool) {
	full, ok := NewKey(single(addr))
	if !ok {
		return Entry{}, false
	}
	prefix := full.Prefix()
	m.mu.RLock()
	defer m.mu.RUnlock()
	for bits := prefix.Bits(); bits >= 0; bits-- {
		key, _ := NewKey(netip.PrefixFrom(prefix.Addr(), bits))
		if *m.length(key) == 0 {
			continue
		}
		if value, ok := m.entries[key]; ok {
			return Entry{full, value}, true
		}
	}
	return Entry{}, false
}

// All implements Map. It works on a copy, so that the map isn't locked meanwhile.
func (m *memoryMap) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		m.mu.RLock()
		entries := make([]Entry, 0, len(m.entries))
		for key, value := range m.entries {
			entries = append(entries, Entry{key, value})
		}
		m.mu.RUnlock()
		for _, entry := range entries {
			if !yield(entry, nil) {
				return
			}
		}
	}
}

// Capacity implements Map.
func (m *memoryMap) Capacity() int { return m.capacity }

// Restored implements Map; it never is.
func (m *memoryMap) Restored() bool { return false }

// String implements Map.
func (m *memoryMap) String() string {
	return fmt.Sprintf("in-memory map for %d entries", m.capacity)
}

// Close implements Map.
func (m *memoryMap) Close() error { return nil }

// setError stores the error of entry i of n, making room at the first one.
func setError(errs []error, n, i int, err error) []error {
	if errs == nil {
		errs = make([]error, n)
	}
	errs[i] = err
	return errs
}
