// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Kernel is what runs in the kernel: the programs, their maps, and where they are
// attached. Its methods are safe for use by several goroutines.
//
// What it makes is pinned and outlives it: after Close, and while no process is there,
// the programs go on looking, and the next one's Open finds the signals of that time.
type Kernel struct {
	log  *slog.Logger
	cfg  Config
	dir  *os.File // holds the lock on the directory
	maps pinned
	// ipcache is the map that the datapath reads.
	ipcache       *ebpf.Map
	ethernet, raw programs

	// reading is held by who reads the signals.
	reading sync.Mutex

	mu    sync.Mutex
	links map[int]*attachment
	cidrs map[netip.Prefix]uint32
}

// programs are those for interfaces of one hardware type.
type programs struct {
	Pod    *ebpf.Program `ebpf:"waggle_pod"`
	Uplink *ebpf.Program `ebpf:"waggle_uplink"`
	Tunnel *ebpf.Program `ebpf:"waggle_tunnel"`
}

func (p programs) of(kind Kind) *ebpf.Program {
	switch kind {
	case KindPod:
		return p.Pod
	case KindUplink:
		return p.Uplink
	case KindTunnel:
		return p.Tunnel
	}
	return nil
}

func (p programs) close() error {
	return errors.Join(p.Pod.Close(), p.Uplink.Close(), p.Tunnel.Close())
}

// Open loads the programs, and opens the maps that an earlier process has pinned in the
// directory or makes them. Links that it left behind run the new programs from then on,
// without a packet in between that nobody looks at.
//
// The errors are [ErrUnsupported], [ErrInUse], [ErrForeignPin], and fs.ErrNotExist if
// there is no ipcache map (yet), wrapped with what was tried; or others that the kernel
// gives.
func Open(log *slog.Logger, cfg Config) (_ *Kernel, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configuring the miss signals: %w", err)
	}
	// Kernels before 5.11 account maps as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lifting the limit on locked memory: %w", unpermitted(err))
	}
	if err := probe(); err != nil {
		return nil, err
	}

	k := &Kernel{log: log, cfg: cfg, links: map[int]*attachment{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	if k.dir, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := checkPins(cfg.Dir); err != nil {
		return nil, err
	}
	if k.ipcache, err = openIPCache(cfg.IPCacheMap); err != nil {
		return nil, err
	}
	if err := k.maps.open(log, cfg); err != nil {
		return nil, err
	}
	if err := k.load(); err != nil {
		return nil, err
	}
	if err := k.restoreLinks(); err != nil {
		return nil, err
	}
	return k, nil
}

// load loads the programs, once for each kind of hardware.
func (k *Kernel) load() error {
	for _, variant := range []struct {
		programs    *programs
		noMACHeader uint8
	}{{&k.ethernet, 0}, {&k.raw, 1}} {
		spec, err := loadMiss()
		if err != nil {
			return fmt.Errorf("reading the programs: %w", err)
		}
		constants := k.cfg.constants()
		constants["no_mac_header"] = variant.noMACHeader
		for name, value := range constants {
			if err := spec.Variables[name].Set(value); err != nil {
				return fmt.Errorf("setting %s in the programs: %w", name, err)
			}
		}
		shared := k.maps.byName()
		shared[ipcacheName] = k.ipcache
		for name, m := range shared {
			spec.Maps[name].MaxEntries = m.MaxEntries()
			spec.Maps[name].Flags = m.Flags()
		}
		if err := spec.LoadAndAssign(variant.programs, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
			return fmt.Errorf("loading the programs: %w", unpermitted(err))
		}
	}
	return nil
}

// Close lets go of everything and takes nothing away: what is pinned stays, and the
// programs go on.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, a := range k.links {
		errs = append(errs, a.link.Close())
	}
	clear(k.links)
	errs = append(errs, k.ethernet.close(), k.raw.close(), k.maps.close(), k.ipcache.Close())
	if k.dir != nil {
		errs = append(errs, k.dir.Close())
		k.dir = nil
	}
	return errors.Join(errs...)
}

// openIPCache opens the map that the datapath reads. We write nothing into it.
func openIPCache(path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening the ipcache map at %s: %w", path, unpermitted(err))
	}
	if m.Type() != ebpf.LPMTrie || m.KeySize() != cidrKeySize || m.ValueSize() != ipcacheValueSize {
		return nil, errors.Join(fmt.Errorf("the map at %s is a %s with keys of %d and values of %d bytes: %w",
			path, m.Type(), m.KeySize(), m.ValueSize(), ErrForeignPin), m.Close())
	}
	return m, nil
}

func (k *Kernel) linksDir() string { return filepath.Join(k.cfg.Dir, linksName) }
