// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// mapName is the kernel's name of our map (at most 15 characters). A map
	// with another name isn't ours.
	mapName = "waggle_ipcache"

	keySize   = 24
	valueSize = 24

	// mapFlags are upstream's: entries are allocated as they come, and programs
	// may only read.
	mapFlags = unix.BPF_F_NO_PREALLOC | unix.BPF_F_RDONLY_PROG

	// chunkSize is the number of entries of one system call: many enough that the
	// call itself doesn't count (BenchmarkBPFUpdate), and 200 KB of buffers.
	chunkSize = 4096
)

// BPFMap is the Map in the kernel. It is pinned, and outlives the process.
type BPFMap struct {
	log      *slog.Logger
	path     string
	restored bool
	dir      *os.File // holds the lock on the directory
	m        *ebpf.Map

	// mu guards what writers use; lookups and dumps go past it.
	mu     sync.Mutex
	single bool // the kernel has no batch operations on this kind of map
	keys   []Key
	values []Value
}

var _ Map = (*BPFMap)(nil)

func mapSpec(capacity uint32) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name:       mapName,
		Type:       ebpf.LPMTrie,
		KeySize:    keySize,
		ValueSize:  valueSize,
		MaxEntries: capacity,
		Flags:      mapFlags,
	}
}

// Update implements Map. It makes one system call for each 4,096 entries, and
// one more for each entry that fails.
func (b *BPFMap) Update(entries []Entry) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for start := 0; start < len(entries); start += chunkSize {
		chunk := entries[start:min(start+chunkSize, len(entries))]
		b.keys, b.values = b.keys[:0], b.values[:0]
		for i := range chunk {
			b.keys = append(b.keys, chunk[i].Key)
			b.values = append(b.values, chunk[i].Value)
		}
		b.inBatches(len(chunk), func(from int) (int, error) {
			return b.m.BatchUpdate(b.keys[from:], b.values[from:], nil)
		}, func(i int) {
			if err := b.updateOne(&b.keys[i], &b.values[i]); err != nil {
				errs = setError(errs, len(entries), start+i, err)
			}
		})
	}
	return errs
}

// Delete implements Map, at the cost of Update.
func (b *BPFMap) Delete(keys []Key) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for start := 0; start < len(keys); start += chunkSize {
		chunk := keys[start:min(start+chunkSize, len(keys))]
		b.inBatches(len(chunk), func(from int) (int, error) {
			return b.m.BatchDelete(chunk[from:], nil)
		}, func(i int) {
			if err := b.m.Delete(&chunk[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = setError(errs, len(keys), start+i, fmt.Errorf("deleting %s: %w", chunk[i], mapError(err)))
			}
		})
	}
	return errs
}

// inBatches handles n items by batch, and by one those that a batch stopped at:
// the kernel ends a batch at the first failure and says how far it came.
func (b *BPFMap) inBatches(n int, batch func(from int) (int, error), one func(i int)) {
	for from := 0; from < n; {
		if b.single || n-from == 1 {
			one(from)
			from++
			continue
		}
		done, err := batch(from)
		switch {
		case err == nil:
			return
		case errors.Is(err, ebpf.ErrNotSupported):
			b.single = true
		case done < n-from:
			from += done
			one(from)
			from++
		default:
			// It failed before it began, and didn't count.
			for ; from < n; from++ {
				one(from)
			}
		}
	}
}

// updateOne writes one entry.
//
// Kernels before 6.13 refuse even to replace an entry once the trie is full.
// Then it is deleted first, so that a full map at least doesn't go stale; where
// it wasn't there, it really doesn't fit.
func (b *BPFMap) updateOne(key *Key, value *Value) error {
	err := b.m.Update(key, value, ebpf.UpdateAny)
	if errors.Is(err, unix.ENOSPC) && b.m.Delete(key) == nil {
		err = b.m.Update(key, value, ebpf.UpdateAny)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", *key, mapError(err))
	}
	return nil
}

// mapError makes the kernel's "no room" recognisable: tries say ENOSPC, and
// hash maps E2BIG.
func mapError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
		return ErrFull
	}
	return err
}

// Lookup implements Map, with the lookup that the datapath does.
func (b *BPFMap) Lookup(addr netip.Addr) (Entry, bool) {
	entry := Entry{}
	var ok bool
	if entry.Key, ok = NewKey(single(addr)); !ok {
		return Entry{}, false
	}
	if err := b.m.Lookup(&entry.Key, &entry.Value); err != nil {
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			b.log.Error("Looking up an address in the ipcache map failed", "address", addr, "error", err)
		}
		return Entry{}, false
	}
	return entry, true
}

// All implements Map.
func (b *BPFMap) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var cursor ebpf.MapBatchCursor
		keys, values := make([]Key, chunkSize), make([]Value, chunkSize)
		for {
			n, err := b.m.BatchLookup(&cursor, keys, values, nil)
			if errors.Is(err, ebpf.ErrNotSupported) {
				b.each(yield)
				return
			}
			end := errors.Is(err, ebpf.ErrKeyNotExist)
			if err != nil && !end {
				yield(Entry{}, fmt.Errorf("reading the ipcache map: %w", err))
				return
			}
			for i := range n {
				if !yield(Entry{keys[i], values[i]}, nil) {
					return
				}
			}
			if end {
				return
			}
		}
	}
}

// each yields the entries one by one, where the kernel can't in batches.
func (b *BPFMap) each(yield func(Entry, error) bool) {
	var entry Entry
	entries := b.m.Iterate()
	for entries.Next(&entry.Key, &entry.Value) {
		if !yield(entry, nil) {
			return
		}
	}
	if err := entries.Err(); err != nil {
		yield(Entry{}, fmt.Errorf("reading the ipcache map: %w", err))
	}
}

// Capacity implements Map.
func (b *BPFMap) Capacity() int { return int(b.m.MaxEntries()) }

// Restored implements Map: the map was pinned by an earlier process.
func (b *BPFMap) Restored() bool { return b.restored }

// Path is where the map is pinned, for programs that load it.
func (b *BPFMap) Path() string { return b.path }

// String implements Map.
func (b *BPFMap) String() string {
	return fmt.Sprintf("BPF map for %d entries at %s", b.Capacity(), b.path)
}

// Close implements Map: the map stays pinned, with its entries.
func (b *BPFMap) Close() error {
	return errors.Join(b.m.Close(), b.dir.Close())
}
