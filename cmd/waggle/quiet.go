// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"
	"runtime/metrics"
	"time"
)

const (
	// quietInterval is how often it is looked whether a program is quiet: the length of a
	// moment in which it is.
	quietInterval = time.Second
	// quietAllocation is what it allocates in that at most, in bytes: of a small heap, a
	// tenth of what is allocated until the next collection. Packets that miss the map bring
	// about some 5 KiB each.
	quietAllocation = 1 << 20
)

// collectInQuiet collects garbage when little is allocated, for the time when much is: what
// comes then waits for a collection in that time, tens of milliseconds on a machine of few
// processors. What a start leaves behind goes as well, and its memory with it. It is called
// once, and has collections be at most twice as many, of which those that it adds begin when
// little is under way.
func collectInQuiet() {
	go func() {
		var q quiet
		for range time.Tick(quietInterval) {
			if q.due(readHeap()) {
				runtime.GC()
			}
		}
	}()
}

// heap is the state of Go's, in bytes.
type heap struct {
	// allocated is what was ever. objects are what is used and what isn't any more, live is
	// what the last collection has found in use, and goal what objects are at the next.
	allocated, objects, live, goal uint64
}

func readHeap() heap {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/goal:bytes"},
	}
	metrics.Read(samples)
	return heap{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()}
}

// quiet notices that a program is, from one look at its heap to the next.
type quiet struct{ allocated uint64 }

// due says whether to collect now: since the last look little was allocated, and half of the
// way from the last collection to the next one is gone.
func (q *quiet) due(now heap) bool {
	since := now.allocated - q.allocated
	q.allocated = now.allocated
	return since < quietAllocation && now.objects > now.live/2+now.goal/2
}
