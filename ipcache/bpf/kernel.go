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

	// reading is held by who reads the signals.
	reading sync.Mutex

	// using is held for reading by who uses the pinned maps, and for writing by who closes
	// them. Locks are taken in the order in which they stand here.
	using  sync.RWMutex
	closed bool

	seenBuffers sync.Pool // of *seenBuffer

	// cidrsMu is another one than mu, since thousands of CIDRs may be written with it held.
	cidrsMu sync.Mutex
	cidrs   map[netip.Prefix]uint32

	mu       sync.Mutex
	programs *programs
	links    map[int]*attachment
}

// use keeps the maps open until using is unlocked, or says that they are closed.
func (k *Kernel) use() error {
	k.using.RLock()
	if k.closed {
		k.using.RUnlock()
		return ErrClosed
	}
	return nil
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
	if err := probe(needs()); err != nil {
		return nil, err
	}

	k := &Kernel{log: log, cfg: cfg, links: map[int]*attachment{}}
	k.seenBuffers.New = func() any { return &seenBuffer{} }
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
	// A map that isn't there is found out before anything is made.
	ipcache, err := openIPCache(cfg.IPCacheMap)
	if err != nil {
		return nil, err
	}
	if err := k.maps.open(log, cfg); err != nil {
		return nil, errors.Join(err, ipcache.Close())
	}
	if k.programs, err = loadPrograms(cfg, &k.maps, ipcache); err != nil {
		return nil, err
	}
	if err := cfg.inNetNS(k.restoreLinks); err != nil {
		return nil, err
	}
	return k, nil
}

// Close lets go of everything and takes nothing away: what is pinned stays, and the
// programs go on.
func (k *Kernel) Close() error {
	k.using.Lock()
	defer k.using.Unlock()
	k.closed = true
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, a := range k.links {
		errs = append(errs, a.link.Close())
	}
	clear(k.links)
	errs = append(errs, k.programs.close(), k.maps.close())
	k.programs = nil
	if k.dir != nil {
		errs = append(errs, k.dir.Close())
		k.dir = nil
	}
	return errors.Join(errs...)
}

func (k *Kernel) linksDir() string { return filepath.Join(k.cfg.Dir, linksName) }
