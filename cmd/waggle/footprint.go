// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"weak"

	"golang.org/x/sys/unix"
)

// spareMemory has a program that runs for long take less memory than one that
// does everything which this binary can do. It is called once, when all is
// initialized and nothing runs yet. gcPercent is Go's GOGC; 0 leaves it alone,
// and so does a GOGC in the environment.
//
// The error is no reason not to go on: it is only memory.
func spareMemory(gcPercent int) error {
	if gcPercent != 0 && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return releaseProgramPages()
}

// idleHeap has a small heap be collected less often. Go collects when the heap has grown by
// a share of what lives in it (GOGC): one of 6 MiB after every 3 MiB that are allocated.
// It is made to look larger by bytes that are never written to, whose pages are no memory,
// so that it may grow by their share as well; until as many others live in it (live, with
// those). What is given is nil once they are let go.
func idleHeap(bytes int, live func() uint64) weak.Pointer[byte] {
	idle := make([]byte, bytes)
	var collected func(*collection)
	collected = func(c *collection) {
		if live() < 2*uint64(len(idle)) {
			runtime.SetFinalizer(c, collected) // for the next time; it is what holds them
		}
	}
	runtime.SetFinalizer(&collection{}, collected)
	return weak.Make(&idle[0])
}

// collection is an object that nobody uses, which a collection finds.
type collection struct{ _ *byte } // with a pointer, so that it shares its memory with no other

// liveHeap is what the last collection has found in use.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// releaseProgramPages gives back the pages of the program file. To initialize
// the 1,500 packages that are linked touches 55 to 75 MiB of it, of which a part
// of a mesh needs some 40 MiB again: those are mapped again when they are used,
// mostly from the kernel's cache of the file.
func releaseProgramPages() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("releasing pages of the program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("releasing pages of the program: %w", err)
	}
	var errs []error
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		begin, end, ok := readOnlyMapping(lines.Text(), self)
		if !ok {
			continue
		}
		// The call and not unix.Madvise, which wants a slice: this memory isn't
		// Go's to make slices of.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("releasing pages of the program at %#x: %w", begin, errno))
		}
	}
	return errors.Join(errs...)
}

// readOnlyMapping gives the range of a line of /proc/self/maps if it maps the
// file and can't be written to. What is written to a page is nowhere else.
//
//	00400000-029a4000 r-xp 00000000 fe:00 9986058      /usr/bin/waggle
func readOnlyMapping(line, file string) (begin, end uintptr, ok bool) {
	addresses, rest, _ := strings.Cut(line, " ")
	permissions, rest, _ := strings.Cut(rest, " ")
	if strings.Contains(permissions, "w") || !strings.HasSuffix(rest, " "+file) {
		return 0, 0, false
	}
	from, to, _ := strings.Cut(addresses, "-")
	first, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return 0, 0, false
	}
	last, err := strconv.ParseUint(to, 16, 64)
	return uintptr(first), uintptr(last), err == nil && first < last
}
