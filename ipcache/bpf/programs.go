// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// programs are those that read one ipcache map, for each kind of interface and for both
// kinds of hardware: with an Ethernet header before a packet, and with none.
type programs struct {
	ipcache       *ebpf.Map
	ethernet, raw variant
}

// unpinned are the maps whose content isn't worth to outlive the programs: they hold it.
var unpinned = []string{signalsName, bucketsName, heldBackName, verdictsName}

type variant struct {
	Pod    *ebpf.Program `ebpf:"waggle_pod"`
	Uplink *ebpf.Program `ebpf:"waggle_uplink"`
	Tunnel *ebpf.Program `ebpf:"waggle_tunnel"`
}

// loadPrograms loads them. The ipcache map is theirs then: it is closed with them, or at
// once if they can't be loaded.
func loadPrograms(cfg Config, pins *pinned, ipcache *ebpf.Map) (*programs, error) {
	p := &programs{ipcache: ipcache}
	if err := p.load(cfg, pins); err != nil {
		return nil, errors.Join(fmt.Errorf("loading the programs: %w", unpermitted(err)), p.close())
	}
	return p, nil
}

func (p *programs) load(cfg Config, pins *pinned) error {
	shared := pins.byName()
	shared[ipcacheName] = p.ipcache
	spec, err := loadMiss()
	if err != nil {
		return err
	}
	for _, name := range unpinned {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			return fmt.Errorf("making the map %s: %w", name, err)
		}
		defer m.Close()
		shared[name] = m
	}
	return errors.Join(p.ethernet.load(cfg, shared, 0), p.raw.load(cfg, shared, 1))
}

func (v *variant) load(cfg Config, shared map[string]*ebpf.Map, noEthernet uint8) error {
	spec, err := loadMiss()
	if err != nil {
		return err
	}
	constants := cfg.constants()
	constants["no_ethernet"] = noEthernet
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			return err
		}
	}
	for name, m := range shared {
		spec.Maps[name].MaxEntries = m.MaxEntries()
		spec.Maps[name].Flags = m.Flags()
	}
	return spec.LoadAndAssign(v, &ebpf.CollectionOptions{MapReplacements: shared})
}

// of is the program for an interface; nil if there is no such kind.
func (p *programs) of(kind Kind, raw bool) *ebpf.Program {
	v := p.ethernet
	if raw {
		v = p.raw
	}
	switch kind {
	case KindPod:
		return v.Pod
	case KindUplink:
		return v.Uplink
	case KindTunnel:
		return v.Tunnel
	}
	return nil
}

func (p *programs) close() error {
	if p == nil {
		return nil
	}
	errs := []error{p.ipcache.Close()}
	for _, v := range []variant{p.ethernet, p.raw} {
		errs = append(errs, v.Pod.Close(), v.Uplink.Close(), v.Tunnel.Close())
	}
	return errors.Join(errs...)
}

// openIPCache opens the map that the datapath reads. We write nothing into it.
func openIPCache(path string) (*ebpf.Map, error) {
	// The kernel would say that it isn't permitted.
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err == nil && stat.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("the ipcache map, %s, isn't on a BPF file system: %w", path, ErrForeignPin)
	}
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

// refresh looks whether the ipcache map that is pinned is still the one that the
// programs read, and has them read the new one if it isn't: an agent that is started
// with another size of its map makes a new map. It says whether that was so.
//
// While it gives an error, the programs read the old map.
func (k *Kernel) refresh() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.programs == nil {
		return false, ErrClosed
	}
	ipcache, err := openIPCache(k.cfg.IPCacheMap)
	if err != nil {
		return false, err
	}
	same, err := sameMap(k.programs.ipcache, ipcache)
	if same || err != nil {
		return false, errors.Join(err, ipcache.Close())
	}
	replacement, err := loadPrograms(k.cfg, &k.maps, ipcache)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, a := range k.links {
		if err := a.link.Update(replacement.of(a.kind, a.raw)); err != nil && !errors.Is(err, unix.ENOLINK) { // the interface is gone
			errs = append(errs, fmt.Errorf("replacing the program of the link at %s: %w", a.path, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// Those that have the new ones keep them, and the next call tries again.
		return false, errors.Join(err, replacement.close())
	}
	old := k.programs
	k.programs = replacement
	return true, old.close()
}

func sameMap(a, b *ebpf.Map) (bool, error) {
	infoA, err := a.Info()
	if err != nil {
		return false, fmt.Errorf("asking about the ipcache map: %w", err)
	}
	infoB, err := b.Info()
	if err != nil {
		return false, fmt.Errorf("asking about the ipcache map: %w", err)
	}
	idA, okA := infoA.ID()
	idB, okB := infoB.ID()
	return okA && okB && idA == idB, nil
}
