// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReadOnlyMapping(t *testing.T) {
	for line, want := range map[string][2]uintptr{
		"00400000-029a4000 r-xp 00000000 fe:00 9986058                            /usr/bin/waggle":     {0x400000, 0x29a4000},
		"029a4000-05730000 r--p 025a4000 fe:00 9986058                            /usr/bin/waggle":     {0x29a4000, 0x5730000},
		"05730000-05942000 rw-p 05330000 fe:00 9986058                            /usr/bin/waggle":     {},
		"7f0000000000-7f0000021000 r-xp 00000000 fe:00 12                         /usr/lib/libc.so":    {},
		"7f0000000000-7f0000021000 r-xp 00000000 fe:00 12                         /opt/usr/bin/waggle": {},
		"7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]":              {},
		"7fff00000000-7fff00002000 r--p 00000000 00:00 0":                                              {},
		"": {},
	} {
		begin, end, ok := readOnlyMapping(line, "/usr/bin/waggle")
		require.Equal(t, want[1] != 0, ok, line)
		if ok {
			require.Equal(t, want, [2]uintptr{begin, end}, line)
		}
	}
}

// TestReleaseProgramPages goes on to run after its own pages were released.
func TestReleaseProgramPages(t *testing.T) {
	require.NoError(t, releaseProgramPages())
	require.NotEmpty(t, newRootCmd().Commands(), "what was released comes back from the file")
}

// TestIdleHeap: it is there while little else is, and gone after that.
func TestIdleHeap(t *testing.T) {
	var live atomic.Uint64
	var asked atomic.Int64
	idle := idleHeap(1<<20, func() uint64 { asked.Add(1); return live.Load() })
	for n := range int64(3) {
		require.Eventually(t, func() bool { runtime.GC(); return asked.Load() > n }, time.Minute, time.Millisecond)
		require.NotNil(t, idle.Value())
	}
	live.Store(2 << 20)
	require.Eventually(t, func() bool { runtime.GC(); return idle.Value() == nil }, time.Minute, time.Millisecond)
	require.Positive(t, liveHeap())
}
