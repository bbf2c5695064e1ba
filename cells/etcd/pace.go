// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import "time"

// pacer says how long the next commit should wait for company. Each message to
// each watcher costs etcd some 20 µs, whatever it holds, so that under load a
// commit of twenty changes is far cheaper than twenty commits; an idle mesh
// must not pay for that with delay.
//
// It estimates the rate at which operations arrive, and waits for about
// batch of them, at most the longest delay, and not at all while fewer
// than two would come in that time.
type pacer struct {
	longest time.Duration
	batch   int     // operations that are company enough
	rate    float64 // operations per second, smoothed
	last    time.Time
}

const (
	// pacerBatch is Options.CommitBatch by default, the size from which on larger
	// commits gain little while watchers are few: measured with 300 of them, 1 / 5 /
	// 20 changes a commit cost 10.3 / 3.5 / 1.1 s CPU.
	pacerBatch = 20
	// pacerWindow is the time constant of the smoothing.
	pacerWindow = 200 * time.Millisecond
)

// observe takes the number of operations that arrived since it was last called.
func (p *pacer) observe(now time.Time, arrived int) {
	elapsed := now.Sub(p.last)
	p.last = now
	if elapsed <= 0 {
		return
	}
	// A window that was idle in between counts as one window, so that a single
	// change after a pause is seen as the small rate that it is.
	weight := float64(min(elapsed, pacerWindow)) / float64(pacerWindow)
	p.rate += weight * (float64(arrived)/elapsed.Seconds() - p.rate)
}

// wait is the delay before the next commit.
func (p *pacer) wait() time.Duration {
	if p.longest <= 0 || p.rate*p.longest.Seconds() < 2 {
		return 0
	}
	return min(p.longest, time.Duration(float64(p.batch)/p.rate*float64(time.Second)))
}
