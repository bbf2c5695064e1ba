// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
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

// kernelSwitch is the kernel's side while it is open, which it may come to be late, and
// anew for another map. Before, and where it can't be, there are no signals, and nothing
// is ever used.
type kernelSwitch struct {
	mu     sync.Mutex
	opened *openedKernel
	// gone is what is said of uses while it was open and isn't; nil before.
	gone error
	// changed is closed with the next change.
	changed chan struct{}
}

// openedKernel is what is open, and who works with it until it is to be closed.
type openedKernel struct {
	Opened
	ctx   context.Context
	end   context.CancelFunc
	users sync.WaitGroup
}

func newKernelSwitch() *kernelSwitch { return &kernelSwitch{changed: make(chan struct{})} }

// set has it open.
func (k *kernelSwitch) set(opened Opened) {
	now := &openedKernel{Opened: opened}
	now.ctx, now.end = context.WithCancel(context.Background())
	k.put(now, nil)
}

// close waits for who works with it, and closes it, if it is open. What is asked from
// then on fails as gone.
func (k *kernelSwitch) close(gone error) error {
	was := k.put(nil, gone)
	if was == nil {
		return nil
	}
	was.end()
	was.users.Wait()
	return was.Close()
}

func (k *kernelSwitch) put(now *openedKernel, gone error) (was *openedKernel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, k.opened, k.gone = k.opened, now, gone
	close(k.changed)
	k.changed = make(chan struct{})
	return was
}

func (k *kernelSwitch) isOpen() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.opened != nil
}

// do calls fn if it is open, and holds off its being closed meanwhile.
func (k *kernelSwitch) do(fn func(Opened) error) error {
	opened, _, gone := k.take()
	if opened == nil {
		return gone
	}
	defer opened.users.Done()
	return fn(opened.Opened)
}

// take is for who ends with opened.ctx, and then calls opened.users.Done.
func (k *kernelSwitch) take() (opened *openedKernel, changed <-chan struct{}, gone error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.opened != nil {
		k.opened.users.Add(1)
	}
	return k.opened, k.changed, k.gone
}

// while calls fn each time that it is open, until ctx ends, or until fn returns by itself.
func (k *kernelSwitch) while(ctx context.Context, fn func(context.Context, Opened) error) error {
	for ctx.Err() == nil {
		opened, changed, _ := k.take()
		if opened == nil {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		err := opened.run(ctx, fn)
		if opened.ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func (o *openedKernel) run(ctx context.Context, fn func(context.Context, Opened) error) error {
	defer o.users.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	return fn(ctx, o.Opened)
}

// Interfaces is the job that has programs on the interfaces.
func (k *kernelSwitch) Interfaces(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for the programs")
	return k.while(ctx, func(ctx context.Context, opened Opened) error { return opened.Interfaces(ctx, health) })
}

func (k *kernelSwitch) Read(ctx context.Context, handle func([]bpf.Miss)) error {
	return k.while(ctx, func(ctx context.Context, opened Opened) error { return opened.Read(ctx, handle) })
}

func (k *kernelSwitch) SetCIDRs(cidrs map[netip.Prefix]uint32) error {
	return k.do(func(opened Opened) error { return opened.SetCIDRs(cidrs) })
}

func (k *kernelSwitch) CIDRs() (cidrs map[netip.Prefix]uint32, err error) {
	err = k.do(func(opened Opened) (err error) { cidrs, err = opened.CIDRs(); return err })
	return cidrs, err
}

func (k *kernelSwitch) Follow(addrs ...netip.Addr) error {
	return k.do(func(opened Opened) error { return opened.Follow(addrs...) })
}

func (k *kernelSwitch) Forget(addrs ...netip.Addr) error {
	return k.do(func(opened Opened) error { return opened.Forget(addrs...) })
}

func (k *kernelSwitch) LastSeen() (seen map[netip.Addr]time.Duration, err error) {
	err = k.do(func(opened Opened) (err error) { seen, err = opened.LastSeen(); return err })
	return seen, err
}

func (k *kernelSwitch) EachSeen(each func(netip.Addr, time.Duration)) error {
	return k.do(func(opened Opened) error { return opened.EachSeen(each) })
}

func (k *kernelSwitch) Stats() (stats bpf.Stats, err error) {
	err = k.do(func(opened Opened) (err error) { stats, err = opened.Stats(); return err })
	return stats, err
}

// monotonic is CLOCK_MONOTONIC, which is bpf_ktime_get_ns.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0 // no kernel is without it
	}
	return time.Duration(now.Nano())
}
