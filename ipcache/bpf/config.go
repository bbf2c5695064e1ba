// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"time"
)

// What a [Config] has where it says nothing.
const (
	defaultInterval    = 200 * time.Millisecond
	defaultRecheck     = 100 * time.Millisecond
	defaultRate        = 1000
	defaultBurst       = 100
	defaultMaxFollowed = 65536
	defaultRingBytes   = 1 << 20

	// MaxMaxFollowed bounds [Config.MaxFollowed]: an ipcache map as Cilium makes it has
	// room for half as many entries, and the kernel holds 100 bytes or so for each.
	MaxMaxFollowed = 1 << 20
	// MaxRate bounds [Config.Rate]: the buckets in the kernel count nanoseconds.
	MaxRate = uint32(time.Second)

	// defaultMaxCIDRs is more than one of each family for each of 100,000 nodes, if none of
	// them can be merged. Only those that are there take memory.
	defaultMaxCIDRs = 1 << 18
)

// stampInterval is how exact the times of [Kernel.LastSeen] are: far below any sensible
// TTL, and seldom enough that CPUs don't fight over the cache line.
const stampInterval = time.Second

// What an interface may signal in a second at the most, for all clusters together, as a
// multiple of [Config.Rate]; at once it may signal as many times [Config.Burst].
const (
	// podShare is that of a pod's interface. Three quarters are for what is signalled at
	// first, with Rate for each cluster, and one for addresses that were held back before.
	podShare = 4
	// deviceShare is that of an uplink or a tunnel. Rate is for addresses that were held
	// back before, and the rest is dealt out to slices of the sources: a source's slice is
	// a hash of its first 24 bits (IPv4) or 64 (IPv6), which are a node's pods, and has a
	// quarter of Rate to itself.
	deviceShare = 1 + sourceSlices/4

	// sourceSlices is SLICES in c/maps.h.
	sourceSlices = 60
)

// Config says where the programs find what they read, and how much they may tell.
// What is zero has the default that stands with it.
type Config struct {
	// Dir is a directory on a BPF file system for our maps and links. It is made if it
	// isn't there, and only one process at a time can have it.
	Dir string
	// IPCacheMap is where the map is pinned that the datapath reads: Cilium's
	// cilium_ipcache_v2 or ours. It is only read.
	IPCacheMap string
	// NetNS is the network namespace of the interfaces, as a file; empty is that of the
	// process.
	NetNS string
	// Interval is the least time between two signals for the same address; 200 ms.
	Interval time.Duration
	// Recheck is how long a CPU goes on taking an address for known, or for no remote
	// pod's, after it was looked up: so long may the first miss of an address go unseen
	// whose entry was deleted, or whose pod CIDR is new. A negative one has every packet
	// looked up. 100 ms.
	Recheck time.Duration
	// Rate is how many signals per second a pod's interface may give for one cluster, and
	// Burst how many at once; 1000 and 100. What an interface may give in all, and how a device of the
	// node deals it out, is a multiple of it.
	Rate, Burst uint32
	// MaxFollowed is how many addresses can be followed, 65536; there is room for somewhat
	// more, for a while.
	MaxFollowed int
	// RingBytes is the size of the ring buffer, a power of two and of whole pages; a
	// signal takes 56 bytes of it. 1 MiB.
	RingBytes int

	// maxCIDRs is how many remote pod CIDRs there can be.
	maxCIDRs int
}

func (c Config) withDefaults() Config {
	if c.Interval == 0 {
		c.Interval = defaultInterval
	}
	if c.Recheck == 0 {
		c.Recheck = defaultRecheck
	}
	if c.Rate == 0 {
		c.Rate = defaultRate
	}
	if c.Burst == 0 {
		c.Burst = defaultBurst
	}
	if c.MaxFollowed == 0 {
		c.MaxFollowed = defaultMaxFollowed
	}
	if c.RingBytes == 0 {
		c.RingBytes = defaultRingBytes
	}
	if c.maxCIDRs == 0 {
		c.maxCIDRs = defaultMaxCIDRs
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("no directory for the maps"))
	}
	if c.IPCacheMap == "" {
		errs = append(errs, errors.New("no ipcache map"))
	}
	if c.Interval < 0 {
		errs = append(errs, fmt.Errorf("an interval of %s between signals", c.Interval))
	}
	if c.Rate > MaxRate {
		errs = append(errs, fmt.Errorf("a rate of %d signals per second, more than %d", c.Rate, MaxRate))
	}
	if c.MaxFollowed < 0 || c.MaxFollowed > MaxMaxFollowed {
		errs = append(errs, fmt.Errorf("%d addresses to follow, which isn't between 0 and %d", c.MaxFollowed, MaxMaxFollowed))
	}
	if c.RingBytes < 0 || bits.OnesCount(uint(c.RingBytes)) != 1 || c.RingBytes%os.Getpagesize() != 0 {
		errs = append(errs, fmt.Errorf("a ring buffer of %d bytes, which isn't a power of two and whole pages", c.RingBytes))
	}
	return errors.Join(errs...)
}

// seenCapacity leaves room for addresses that are followed before those that they replace
// are forgotten: more than one batch of user space's answers has.
func (c Config) seenCapacity() int { return c.MaxFollowed + max(c.MaxFollowed/8, 1024) }

// constants are the read-only globals of the programs.
func (c Config) constants() map[string]any {
	token := uint64(time.Second) / uint64(c.Rate)
	bucket := token * uint64(c.Burst)
	return map[string]any{
		"interval_ns":     uint64(c.Interval),
		"recheck_ns":      uint64(max(c.Recheck, 0)),
		"token_ns":        token,
		"bucket_ns":       bucket,
		"all_token_ns":    max(token/(podShare-1), 1),
		"slice_token_ns":  4 * token,
		"slice_bucket_ns": max(bucket, 4*token), // one token at least
		"seed":            rand.Uint64(),
		"stamp_ns":        uint64(stampInterval),
	}
}
