// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package await tells when entries come into another process's ipcache map. A program
// in the kernel looks up all that are waited for in one system call (BPF_PROG_TEST_RUN):
// a lookup is 0.1 µs that way, and from user space ten to twenty times that, by which 64
// of them 2,000 times a second took a seventh of two processors from those who were
// measured.
package await

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/ipcache"
)

// MaxAwaited is how many entries can be waited for at once: MAX_SLOTS in look.c.
const MaxAwaited = 1024

// errBusy says that as many entries are waited for as can be.
var errBusy = errors.New("too many entries are waited for at once")

// The states of a slot: EMPTY is 0, and these AWAITED and FOUND in look.c.
const (
	waits = 1
	found = 2
)

const slotSize = int64(unsafe.Sizeof(lookSlot{}))

// Entry is what is waited for: an address with this identity. One without an entry of its
// own has the identity of the longest prefix around it.
type Entry struct {
	Key      ipcache.Key
	Identity uint32
}

// Watch looks for entries. Its methods aren't safe for concurrent use.
type Watch struct {
	objects lookObjects
	slots   *ebpf.Memory
	entries []Entry
	free    []int
	frame   []byte
}

// New watches target, which has to have the layout of Cilium's ipcache, for up to room
// entries at a time.
func New(target *ebpf.Map, room int) (_ *Watch, err error) {
	if room < 1 || room > MaxAwaited {
		return nil, fmt.Errorf("%d entries at once: must be 1 to %d", room, MaxAwaited)
	}
	w := &Watch{entries: make([]Entry, room), frame: make([]byte, 14)} // as the kernel wants at least
	for i := range room {
		w.free = append(w.free, i)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("looking into a map: %w", err), w.Close())
		}
	}()
	spec, err := loadLook()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["used"].Set(uint32(room)); err != nil {
		return nil, err
	}
	spec.Maps["target"].MaxEntries, spec.Maps["target"].Flags = target.MaxEntries(), target.Flags()
	if err := spec.LoadAndAssign(&w.objects, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"target": target}}); err != nil {
		return nil, err
	}
	w.slots, err = w.objects.Slots.Memory()
	return w, err
}

// Expect waits for an entry. It is an error if as many are waited for as can be.
func (w *Watch) Expect(e Entry) error {
	if len(w.free) == 0 {
		return errBusy
	}
	i := w.free[len(w.free)-1]
	slot := lookSlot{Identity: e.Identity, State: waits}
	slot.Key.Bytes = *(*[24]uint8)(unsafe.Pointer(&e.Key))
	if _, err := w.slots.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&slot)), slotSize), int64(i)*slotSize); err != nil {
		return fmt.Errorf("waiting for an entry: %w", err)
	}
	w.free, w.entries[i] = w.free[:len(w.free)-1], e
	return nil
}

// Look yields those that have come, with the time at which that was seen, by the clock of
// [Now], and waits for them no longer.
func (w *Watch) Look(come func(e Entry, at time.Duration)) error {
	n, err := w.objects.WaggleLook.Run(&ebpf.RunOptions{Data: w.frame})
	if err != nil {
		return fmt.Errorf("looking into a map: %w", err)
	}
	for i := 0; i < len(w.entries) && n > 0; i++ {
		var slot lookSlot
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&slot)), slotSize)
		if _, err := w.slots.ReadAt(raw, int64(i)*slotSize); err != nil {
			return fmt.Errorf("looking into a map: %w", err)
		}
		if slot.State != found {
			continue
		}
		n--
		at := time.Duration(slot.Time)
		clear(raw) // empty
		if _, err := w.slots.WriteAt(raw, int64(i)*slotSize); err != nil {
			return fmt.Errorf("looking into a map: %w", err)
		}
		w.free = append(w.free, i)
		come(w.entries[i], at)
	}
	return nil
}

// Close ends it. The map stays open.
func (w *Watch) Close() error { return w.objects.Close() }

// Now reads CLOCK_MONOTONIC, as the kernel does where an entry has come.
func Now() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(fmt.Sprintf("reading CLOCK_MONOTONIC, which there always is: %v", err))
	}
	return time.Duration(now.Nano())
}
