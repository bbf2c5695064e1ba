// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cilium/hive/cell"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// Opener gives access to the kernel's side.
type Opener interface {
	// Open makes or takes over the maps and programs. The error for a kernel that
	// can't is bpf.ErrUnsupported.
	Open(log *slog.Logger, cfg bpf.Config, pods, devices bpf.Patterns) (Opened, error)
	// Remove takes away what earlier processes have left in a directory.
	Remove(log *slog.Logger, dir string) error
}

// Opened is the kernel's side of this process.
type Opened struct {
	Kernel
	// Interfaces is the job that has programs on the interfaces that are selected.
	Interfaces func(ctx context.Context, health cell.Health) error
	// Close ends the access; what is in the kernel stays, for the next process.
	Close func() error
}

// kernelSwitch is the kernel's side once it is open. Before, and where it can't be, there
// are no signals, and nothing is ever used.
type kernelSwitch struct{ opened atomic.Pointer[Opened] }

func (k *kernelSwitch) SetCIDRs(cidrs map[netip.Prefix]uint32) error {
	if opened := k.opened.Load(); opened != nil {
		return opened.SetCIDRs(cidrs)
	}
	return nil
}

func (k *kernelSwitch) CIDRs() (map[netip.Prefix]uint32, error) {
	if opened := k.opened.Load(); opened != nil {
		return opened.CIDRs()
	}
	return nil, nil
}

func (k *kernelSwitch) Read(ctx context.Context, handle func([]bpf.Miss)) error {
	if opened := k.opened.Load(); opened != nil {
		return opened.Read(ctx, handle)
	}
	<-ctx.Done()
	return nil
}

func (k *kernelSwitch) Follow(addrs ...netip.Addr) error {
	if opened := k.opened.Load(); opened != nil {
		return opened.Follow(addrs...)
	}
	return nil
}

func (k *kernelSwitch) Forget(addrs ...netip.Addr) error {
	if opened := k.opened.Load(); opened != nil {
		return opened.Forget(addrs...)
	}
	return nil
}

func (k *kernelSwitch) LastSeen() (map[netip.Addr]time.Duration, error) {
	if opened := k.opened.Load(); opened != nil {
		return opened.LastSeen()
	}
	return nil, nil
}

func (k *kernelSwitch) EachSeen(each func(netip.Addr, time.Duration)) error {
	if opened := k.opened.Load(); opened != nil {
		return opened.EachSeen(each)
	}
	return nil
}

func (k *kernelSwitch) Stats() (bpf.Stats, error) {
	if opened := k.opened.Load(); opened != nil {
		return opened.Stats()
	}
	return bpf.Stats{}, nil
}

// monotonic is CLOCK_MONOTONIC, which is bpf_ktime_get_ns.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0 // no kernel is without it
	}
	return time.Duration(now.Nano())
}
