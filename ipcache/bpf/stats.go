// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import "fmt"

// Stats sums up what the CPUs have counted.
func (k *Kernel) Stats() (Stats, error) {
	if err := k.use(); err != nil {
		return Stats{}, err
	}
	defer k.using.RUnlock()
	var perCPU []missCounters
	if err := k.maps.counters.Lookup(uint32(0), &perCPU); err != nil {
		return Stats{}, fmt.Errorf("reading the counters: %w", err)
	}
	var stats Stats
	for i := range perCPU {
		c := &perCPU[i]
		stats.Hits += c.Hits
		stats.Misses += c.Misses
		stats.Others += c.Others
		stats.Signals += c.Signals
		stats.Repeated += c.Repeated
		stats.RateLimited += c.RateLimited
		stats.RingFull += c.RingFull
	}
	return stats, nil
}
