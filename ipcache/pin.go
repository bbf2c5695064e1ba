// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// pinName is the map's name in its directory. It differs from upstream's
// cilium_ipcache_v2 so that even a directory shared with an agent has room for
// both.
const pinName = mapName

// BPFConfig says which map OpenBPF opens.
type BPFConfig struct {
	// Root is where the BPF file system is mounted; it is mounted if it isn't.
	Root string
	// Dir is the directory of this process's maps, below Root. Only one process
	// at a time can have it.
	Dir string
	// Capacity is the number of entries.
	Capacity int
}

// OpenBPF opens the pinned map, with the entries it has, or makes it. A map of
// ours with another size or layout is replaced.
//
// The errors are [ErrBPFNotPermitted], [ErrInUse] and [ErrForeignMap], wrapped
// with what was tried, or others that the kernel gives.
func OpenBPF(log *slog.Logger, cfg BPFConfig) (_ *BPFMap, err error) {
	defer func() {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) ||
			errors.Is(err, unix.ENOSYS) || errors.Is(err, ebpf.ErrNotSupported) {
			err = fmt.Errorf("%w: %w", ErrBPFNotPermitted, err)
		}
	}()

	// Kernels before 5.11 account maps as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lifting the limit on locked memory: %w", err)
	}
	if err := mountBPFFS(log, cfg.Root); err != nil {
		return nil, err
	}
	dir, err := LockDir(filepath.Join(cfg.Root, cfg.Dir))
	if err != nil {
		return nil, err
	}
	b := &BPFMap{log: log, path: filepath.Join(dir.Name(), pinName), dir: dir}
	if err := b.open(uint32(cfg.Capacity)); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return b, nil
}

// LockDir makes a directory of maps and takes it for this process, until what it
// returns is closed or the process ends, however it ends. The error is [ErrInUse] if
// another one has it.
func LockDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of maps: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of maps: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), dir.Close())
	}
	return dir, nil
}

// open finds the pinned map or pins a new one.
func (b *BPFMap) open(capacity uint32) error {
	spec := mapSpec(capacity)
	switch old, err := ebpf.LoadPinnedMap(b.path, nil); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("opening the map at %s: %w", b.path, err)
	default:
		keep, err := b.keep(old, spec)
		if err != nil {
			return errors.Join(fmt.Errorf("checking the map at %s: %w", b.path, err), old.Close())
		}
		if keep {
			b.m, b.restored = old, true
			return nil
		}
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
			return fmt.Errorf("removing the map at %s: %w", b.path, err)
		}
	}

	m, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("making the ipcache map: %w", err)
	}
	if err := m.Pin(b.path); err != nil {
		return errors.Join(fmt.Errorf("pinning the map at %s: %w", b.path, err), m.Close())
	}
	b.m = m
	return nil
}

// keep says whether a pinned map can be used as it is. A map that isn't ours is
// an error: it is neither used nor replaced.
func (b *BPFMap) keep(old *ebpf.Map, spec *ebpf.MapSpec) (bool, error) {
	info, err := old.Info()
	if err != nil {
		return false, err
	}
	if info.Name != spec.Name {
		return false, fmt.Errorf("it is named %q, not %q: %w", info.Name, spec.Name, ErrForeignMap)
	}
	err = spec.Compatible(old)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		b.log.Warn("Replacing the pinned ipcache map, which has another size or layout",
			"path", b.path,
			"difference", err,
			"capacity", spec.MaxEntries,
			"oldCapacity", info.MaxEntries,
		)
		return false, nil
	}
	return err == nil, err
}
