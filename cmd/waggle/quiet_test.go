// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQuiet(t *testing.T) {
	const mib = 1 << 20
	for name, of := range map[string]struct {
		allocated, objects, live, goal uint64
		due                            bool
	}{
		"quiet, and most of the way is gone":     {100 * mib, 90 * mib, 70 * mib, 100 * mib, true},
		"quiet, but just collected":              {100 * mib, 71 * mib, 70 * mib, 100 * mib, false},
		"quiet, and exactly half of it is gone":  {100 * mib, 85 * mib, 70 * mib, 100 * mib, false},
		"busy, though most of the way is gone":   {101 * mib, 90 * mib, 70 * mib, 100 * mib, false},
		"quiet before the first collection":      {100 * mib, 3 * mib, 0, 4 * mib, true},
		"never collected, as with GOGC=off":      {100 * mib, 900 * mib, 0, math.MaxUint64, false},
		"the goal is exceeded while it is quiet": {100 * mib, 101 * mib, 70 * mib, 100 * mib, true},
	} {
		q := quiet{allocated: 100 * mib}
		require.Equal(t, of.due, q.due(heap{of.allocated, of.objects, of.live, of.goal}), name)
	}
	var first quiet
	busy := heap{allocated: 100 * mib, objects: 90 * mib, live: 10 * mib, goal: 100 * mib}
	require.False(t, first.due(busy), "what a start has allocated counts")
	require.True(t, first.due(busy), "and is over then")
}

// TestReadHeap: what is allocated counts, and a heap that was just collected isn't due.
func TestReadHeap(t *testing.T) {
	runtime.GC()
	before := readHeap()
	require.Positive(t, before.live)
	require.Greater(t, before.goal, before.live)
	require.GreaterOrEqual(t, before.objects, before.live/2)
	for range 16 {
		garbage = make([]byte, 1<<20)
	}
	require.GreaterOrEqual(t, readHeap().allocated, before.allocated+16<<20)
	runtime.GC()
	q := quiet{allocated: readHeap().allocated}
	require.False(t, q.due(readHeap()))
}

// garbage is what a compiler can't leave out.
var garbage []byte
