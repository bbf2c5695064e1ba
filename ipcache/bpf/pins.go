// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache"
)

// Names of maps in the kernel, in the object, and in the directory.
const (
	ipcacheName  = "waggle_ipcache"
	cidrsName    = "waggle_cidrs"
	seenName     = "waggle_seen"
	countersName = "waggle_counters"
	missesName   = "waggle_misses"
	signalsName  = "waggle_signals"
	bucketsName  = "waggle_buckets"
	heldBackName = "waggle_held_back"
	verdictsName = "waggle_verdicts"

	// linksName is the directory of links.
	linksName = "links"
)

const (
	cidrKeySize      = 24
	ipcacheValueSize = 24
)

// pinned are the maps that outlive us and, unlike those of programs.go, our programs.
type pinned struct {
	cidrs, seen, counters, misses *ebpf.Map
}

func (m *pinned) byName() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{cidrsName: m.cidrs, seenName: m.seen, countersName: m.counters, missesName: m.misses}
}

// open opens the pinned maps or makes them.
func (m *pinned) open(log *slog.Logger, cfg Config) error {
	spec, err := loadMiss()
	if err != nil {
		return fmt.Errorf("reading the programs: %w", err)
	}
	for _, each := range []struct {
		name     string
		capacity int
		m        **ebpf.Map
	}{
		{cidrsName, cfg.maxCIDRs, &m.cidrs},
		{seenName, cfg.seenCapacity(), &m.seen},
		{countersName, 1, &m.counters},
		{missesName, cfg.RingBytes, &m.misses},
	} {
		mapSpec := spec.Maps[each.name]
		mapSpec.MaxEntries = uint32(each.capacity)
		*each.m, err = openMap(log, filepath.Join(cfg.Dir, each.name), mapSpec)
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *pinned) close() error {
	return errors.Join(m.cidrs.Close(), m.seen.Close(), m.counters.Close(), m.misses.Close())
}

// openMap opens one pinned map. One of ours with another size or layout is replaced, and
// keeps what it has if only the size differs.
func openMap(log *slog.Logger, path string, spec *ebpf.MapSpec) (_ *ebpf.Map, err error) {
	old, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return makeMap(path, spec)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the map at %s: %w", path, unpermitted(err))
	}
	difference := spec.Compatible(old)
	if difference == nil {
		return old, nil
	}
	defer old.Close()
	if !errors.Is(difference, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("checking the map at %s: %w", path, difference)
	}
	log.Warn("Replacing a pinned map, which has another size or layout", "path", path, "difference", difference)
	// The old one stays where it is until there is another: one that the kernel doesn't
	// make must not cost what this one has.
	m, err := newMap(spec)
	if err != nil {
		return nil, err
	}
	if holdsEntries(m) && old.Type() == m.Type() && old.KeySize() == m.KeySize() && old.ValueSize() == m.ValueSize() {
		copied, err := copyMap(m, old)
		if err != nil {
			log.Warn("Some of what the pinned map had is lost", "path", path, "copied", copied, "error", err)
		}
	}
	if err := old.Unpin(); err != nil {
		return nil, errors.Join(fmt.Errorf("removing the map at %s: %w", path, err), m.Close())
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pinning the map at %s: %w", path, err), m.Close(), old.Pin(path))
	}
	return m, nil
}

// holdsEntries says whether what a map has is worth to be copied into one of another size.
func holdsEntries(m *ebpf.Map) bool { return m.Type() == ebpf.Hash || m.Type() == ebpf.LPMTrie }

func newMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("making the map %s for %d entries: %w", spec.Name, spec.MaxEntries, unpermitted(err))
	}
	return m, nil
}

func makeMap(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := newMap(spec)
	if err != nil {
		return nil, err
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pinning the map at %s: %w", path, err), m.Close())
	}
	return m, nil
}

// copyMap copies what fits, and says how much that was.
func copyMap(to, from *ebpf.Map) (copied int, err error) {
	var key, value []byte
	entries := from.Iterate()
	for entries.Next(&key, &value) {
		if err := to.Put(key, value); err != nil {
			return copied, err
		}
		copied++
	}
	return copied, entries.Err()
}

// lockDir takes a directory, which must be on a BPF file system, for this process.
func lockDir(path string) (*os.File, error) {
	dir, err := ipcache.LockDir(path)
	if err != nil {
		return nil, unpermitted(err)
	}
	var stat unix.Statfs_t
	if err = unix.Fstatfs(int(dir.Fd()), &stat); err != nil {
		err = fmt.Errorf("looking at the file system of %s: %w", path, err)
	} else if stat.Type != unix.BPF_FS_MAGIC {
		err = fmt.Errorf("the directory of maps, %s, isn't on a BPF file system", path)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// checkPins refuses a directory with something in it that we don't make, before
// anything there is changed.
func checkPins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("looking into the directory of maps: %w", err)
	}
	for _, entry := range entries {
		switch entry.Name() {
		case cidrsName, seenName, countersName, missesName:
			if err := checkMap(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		case linksName:
		default:
			return fmt.Errorf("the directory of maps has %s: %w", filepath.Join(dir, entry.Name()), ErrForeignPin)
		}
	}
	return nil
}

// checkMap refuses a map that only has the name of its pin in common with ours.
func checkMap(path string) error {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("opening the map at %s: %w", path, unpermitted(err))
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("asking about the map at %s: %w", path, err)
	}
	if info.Name != filepath.Base(path) {
		return fmt.Errorf("the map at %s is named %q: %w", path, info.Name, ErrForeignPin)
	}
	return nil
}
