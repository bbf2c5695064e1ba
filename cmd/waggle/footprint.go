// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

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

// idleHeap gives bytes that are never used: Go collects when the heap has grown by a share
// of what lives in it (GOGC), so that a small one is collected all the time. Pages that
// nobody writes to are no memory; the heap may grow by their share before it is collected.
func idleHeap(bytes int) []byte { return make([]byte, bytes) }

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
