// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/cilium/hive/cell"
)

// The values of --ipcache-backend.
const (
	// BackendBPF is the map in the kernel; without permission for it, the start fails.
	BackendBPF = "bpf"
	// BackendMemory is the map in memory.
	BackendMemory = "memory"
	// BackendAuto is the map in the kernel where that is permitted, else the
	// one in memory, which health then says.
	BackendAuto = "auto"
)

// Opener opens the map of this process. The error for "not here" is
// [ErrBPFNotPermitted]; any other stops the start.
type Opener func(log *slog.Logger, cfg Config) (Map, error)

// openByFlag opens the map that --ipcache-backend names. For "auto" it tries the
// kernel, and leaves it to the Datapath to fall back.
func openByFlag(log *slog.Logger, cfg Config) (Map, error) {
	if cfg.Backend == BackendMemory {
		return openInMemory(log, cfg)
	}
	m, err := OpenBPF(log, BPFConfig{Root: cfg.BPFRoot, Dir: cfg.BPFMapDir, Capacity: cfg.Capacity})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// openInMemory opens the map in memory, whatever the flags say.
func openInMemory(_ *slog.Logger, cfg Config) (Map, error) {
	return newMemoryMap(cfg.Capacity), nil
}

// Datapath is the map that this process has, from its start to its stop; at
// other times writes fail with [ErrClosed] and nothing is found. It is safe for
// use by several goroutines, as a Map is.
type Datapath struct {
	log    *slog.Logger
	cfg    Config
	health cell.Health
	open   Opener

	mu     sync.RWMutex
	target Map // nil when not open

	// Of the reconciler, for Stats.
	wanted, failed, overflow atomic.Int64
}

var _ Map = (*Datapath)(nil)

func newDatapath(open Opener) func(cell.Lifecycle, *slog.Logger, Config, cell.Health) (*Datapath, error) {
	return func(lc cell.Lifecycle, log *slog.Logger, cfg Config, health cell.Health) (*Datapath, error) {
		if err := cfg.validate(); err != nil {
			return nil, err
		}
		d := &Datapath{log: log, cfg: cfg, health: health.NewScope("datapath"), open: open}
		lc.Append(d)
		return d, nil
	}
}

// Start opens the map.
func (d *Datapath) Start(cell.HookContext) error {
	target, err := d.open(d.log, d.cfg)
	var fallback error
	if d.cfg.Backend == BackendAuto && errors.Is(err, ErrBPFNotPermitted) {
		fallback = err
		target, err = openInMemory(d.log, d.cfg)
	}
	if err != nil {
		return fmt.Errorf("opening the ipcache map: %w", err)
	}

	d.mu.Lock()
	d.target = target
	d.mu.Unlock()
	if fallback != nil {
		d.log.Warn("The ipcache is kept in memory only: no datapath reads it", "error", fallback)
		d.health.Degraded(target.String(), fallback)
		return nil
	}
	d.log.Info("Opened the ipcache map", "map", target.String(), "restored", target.Restored())
	d.health.OK(target.String())
	return nil
}

// Stop closes the map.
func (d *Datapath) Stop(cell.HookContext) error { return d.Close() }

// PinPath is where the map is pinned, for BPF programs that are to read it; false
// if it isn't in the kernel.
func (d *Datapath) PinPath() (string, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if b, ok := d.target.(*BPFMap); ok {
		return b.Path(), true
	}
	return "", false
}

// Overflow is how many wanted entries aren't in the map because it is full.
func (d *Datapath) Overflow() int { return int(d.overflow.Load()) }

// Stats counts entries.
type Stats struct {
	// Wanted is what the tables want in the map; an address that both an endpoint and a
	// node have counts twice. Overflow doesn't fit, and Failed isn't in the map as it
	// should be for another reason.
	Wanted, Overflow, Failed int
	// Capacity is how many fit.
	Capacity int
}

// Stats gives the counts as of the last round.
func (d *Datapath) Stats() Stats {
	return Stats{Wanted: int(d.wanted.Load()), Overflow: d.Overflow(), Failed: int(d.failed.Load()), Capacity: d.Capacity()}
}

// Update implements Map.
func (d *Datapath) Update(entries []Entry) []error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.target == nil {
		return allClosed(len(entries))
	}
	return d.target.Update(entries)
}

// Delete implements Map.
func (d *Datapath) Delete(keys []Key) []error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.target == nil {
		return allClosed(len(keys))
	}
	return d.target.Delete(keys)
}

// Lookup implements Map.
func (d *Datapath) Lookup(addr netip.Addr) (Entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.target == nil {
		return Entry{}, false
	}
	return d.target.Lookup(addr)
}

// All implements Map. The map stays open until the iteration ends.
func (d *Datapath) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d.mu.RLock()
		defer d.mu.RUnlock()
		if d.target == nil {
			yield(Entry{}, ErrClosed)
			return
		}
		d.target.All()(yield)
	}
}

// Capacity implements Map.
func (d *Datapath) Capacity() int { return d.cfg.Capacity }

// Restored implements Map.
func (d *Datapath) Restored() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.target != nil && d.target.Restored()
}

// String implements Map.
func (d *Datapath) String() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.target == nil {
		return "closed map"
	}
	return d.target.String()
}

// Close implements Map. It may be called more than once.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.target == nil {
		return nil
	}
	target := d.target
	d.target = nil
	return target.Close()
}

func allClosed(n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = ErrClosed
	}
	return errs
}
