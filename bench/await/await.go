// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package await tells when entries come into another process's ipcache map. A timer in the
// kernel looks up all that are waited for: a lookup is 0.1 µs there, and from user space ten
// to twenty times that; and it looks between the others' work, where a process that looks
// waits for a processor as long as those who are measured keep all of them busy. As it
// interrupts whoever runs, what it takes may be counted as theirs.
package await

import (
	"encoding/binary"
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

// interval is the time between two looks, by which a time may be too late. A look for 64
// entries that don't come takes 1 µs (BenchmarkLook).
const interval = 200 * time.Microsecond

const slotSize = int64(unsafe.Sizeof(lookSlot{}))

// Entry is what is waited for: an address with this identity. One without an entry of its
// own has the identity of the longest prefix around it.
type Entry struct {
	Key      ipcache.Key
	Identity uint32
}

// Watch waits for entries. Its methods aren't safe for concurrent use.
type Watch struct {
	objects lookObjects
	slots   *ebpf.Memory
	entries []Entry
	free    []int
}

// New watches target, which has to have the layout of Cilium's ipcache, for up to room
// entries at a time.
func New(target *ebpf.Map, room int) (_ *Watch, err error) {
	if room < 1 || room > MaxAwaited {
		return nil, fmt.Errorf("%d entries at once: must be 1 to %d", room, MaxAwaited)
	}
	w := &Watch{entries: make([]Entry, room)}
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
	if err := errors.Join(spec.Variables["used"].Set(uint32(room)), spec.Variables["interval"].Set(uint64(interval))); err != nil {
		return nil, err
	}
	spec.Maps["target"].MaxEntries, spec.Maps["target"].Flags = target.MaxEntries(), target.Flags()
	if err := spec.LoadAndAssign(&w.objects, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"target": target}}); err != nil {
		return nil, err
	}
	if w.slots, err = w.objects.Slots.Memory(); err != nil {
		return nil, err
	}
	code, err := w.objects.WaggleLook.Run(&ebpf.RunOptions{Data: make([]byte, 14)}) // as the kernel wants at least
	if err == nil && code != 0 {
		err = fmt.Errorf("starting the timer: %w", unix.Errno(code))
	}
	return w, err
}

// Expect waits for an entry. It is an error if as many are waited for as can be.
func (w *Watch) Expect(e Entry) error {
	if len(w.free) == 0 {
		return errBusy
	}
	i := w.free[len(w.free)-1]
	slot := lookSlot{Identity: e.Identity}
	slot.Key.Bytes = *(*[24]uint8)(unsafe.Pointer(&e.Key))
	if err := w.write(i, 0, unsafe.Slice((*byte)(unsafe.Pointer(&slot)), slotSize)); err != nil {
		return err
	}
	if err := w.write(i, unsafe.Offsetof(slot.Awaited), taken); err != nil {
		return err
	}
	w.free, w.entries[i] = w.free[:len(w.free)-1], e
	return nil
}

// taken and vacant are the values of Awaited. Each is written after or before the rest of a
// slot, in the order in which amd64 has others see it.
var taken, vacant = binary.NativeEndian.AppendUint32(nil, 1), binary.NativeEndian.AppendUint32(nil, 0)

func (w *Watch) write(slot int, offset uintptr, raw []byte) error {
	if _, err := w.slots.WriteAt(raw, int64(slot)*slotSize+int64(offset)); err != nil {
		return fmt.Errorf("waiting for an entry: %w", err)
	}
	return nil
}

// Arrived yields those that have come, with the time at which the timer saw that, by the clock
// of [Now], and waits for them no longer. It makes no system call.
func (w *Watch) Arrived(each func(e Entry, at time.Duration)) error {
	raw := make([]byte, 8)
	for i, e := range w.entries {
		if e == (Entry{}) {
			continue
		}
		if _, err := w.slots.ReadAt(raw, int64(i)*slotSize+int64(unsafe.Offsetof(lookSlot{}.Time))); err != nil {
			return fmt.Errorf("seeing what has come: %w", err)
		}
		at := binary.NativeEndian.Uint64(raw)
		if at == 0 {
			continue
		}
		if err := w.write(i, unsafe.Offsetof(lookSlot{}.Awaited), vacant); err != nil {
			return err
		}
		w.free, w.entries[i] = append(w.free, i), Entry{}
		each(e, time.Duration(at))
	}
	return nil
}

// Looks is how often the timer has looked, and the time that this took it in all.
func (w *Watch) Looks() (looks int, took time.Duration, err error) {
	var clock lookClock
	if err := w.objects.Clocks.Lookup(uint32(0), &clock); err != nil {
		return 0, 0, fmt.Errorf("asking how often was looked: %w", err)
	}
	return int(clock.Looks), time.Duration(clock.Time), nil
}

// Close ends it. The map stays open.
func (w *Watch) Close() error { return w.objects.Close() }

// Now reads CLOCK_MONOTONIC, as the timer does where an entry has come.
func Now() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(fmt.Sprintf("reading CLOCK_MONOTONIC, which there always is: %v", err))
	}
	return time.Duration(now.Nano())
}
