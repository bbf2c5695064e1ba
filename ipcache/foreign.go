// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/hive/cell"
)

// AgentMap is where cilium-agent pins its ipcache map, below --bpf-root.
const AgentMap = "tc/globals/cilium_ipcache_v2"

// ReadOnlyCell provides a Datapath on the map of cilium-agent, for a hive that is in that
// agent: its own ipcache writes the map, and ours only looks at it. It needs Config.
var ReadOnlyCell = cell.Module(
	"ipcache",
	"The ipcache map of cilium-agent",

	cell.Provide(newDatapath(openReadOnly), scriptCommands),
)

func openReadOnly(log *slog.Logger, cfg Config) (Map, error) {
	return &readOnlyMap{log: log, path: filepath.Join(cfg.BPFRoot, AgentMap), capacity: cfg.Capacity}, nil
}

// readOnlyMap is a map in the kernel that is another program's. It is opened for each use:
// its owner may make it late, and anew.
type readOnlyMap struct {
	log      *slog.Logger
	path     string
	capacity int
}

var _ Map = (*readOnlyMap)(nil)

func (r *readOnlyMap) open() (*BPFMap, error) {
	m, err := ebpf.LoadPinnedMap(r.path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", r.path, err)
	}
	if m.Type() != ebpf.LPMTrie || m.KeySize() != keySize || m.ValueSize() != valueSize {
		m.Close()
		return nil, fmt.Errorf("opening %s: it isn't an ipcache map", r.path)
	}
	return &BPFMap{log: r.log, path: r.path, m: m}, nil
}

// Update implements Map: it can't.
func (r *readOnlyMap) Update(entries []Entry) []error { return allForeign(len(entries)) }

// Delete implements Map: it can't.
func (r *readOnlyMap) Delete(keys []Key) []error { return allForeign(len(keys)) }

func allForeign(n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = ErrForeignMap
	}
	return errs
}

// Lookup implements Map.
func (r *readOnlyMap) Lookup(addr netip.Addr) (Entry, bool) {
	m, err := r.open()
	if err != nil {
		return Entry{}, false
	}
	defer m.m.Close()
	return m.Lookup(addr)
}

// All implements Map.
func (r *readOnlyMap) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		m, err := r.open()
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer m.m.Close()
		m.All()(yield)
	}
}

// Capacity implements Map.
func (r *readOnlyMap) Capacity() int { return r.capacity }

// Restored implements Map.
func (r *readOnlyMap) Restored() bool { return true }

func (r *readOnlyMap) String() string { return "map of cilium-agent at " + r.path }

// Close implements Map.
func (r *readOnlyMap) Close() error { return nil }
