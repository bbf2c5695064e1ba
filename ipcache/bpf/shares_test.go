// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// What a bucket is for, as the enum of c/maps.h.
const (
	bucketCluster = iota + 1
	bucketAll
	bucketSlice
	bucketHeldBack
)

// buckets are the token buckets that there are, by what they are for.
func (f *fixture) buckets(t testing.TB) map[uint32]map[missBucketKey]bool {
	t.Helper()
	info, err := f.programs.ethernet.Pod.Info()
	require.NoError(t, err)
	ids, ok := info.MapIDs()
	require.True(t, ok)
	all := map[uint32]map[missBucketKey]bool{}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		require.NoError(t, err)
		defer m.Close()
		mapInfo, err := m.Info()
		require.NoError(t, err)
		if mapInfo.Name != bucketsName {
			continue
		}
		var key missBucketKey
		var spent uint64
		entries := m.Iterate()
		for entries.Next(&key, &spent) {
			if all[key.What] == nil {
				all[key.What] = map[missBucketKey]bool{}
			}
			all[key.What][key] = true
		}
		require.NoError(t, entries.Err())
	}
	return all
}

// network64 is the nth /64 of cluster 7.
func network64(n int) string {
	ip := netip.MustParseAddr("fd00:7::1").As16()
	binary.BigEndian.PutUint16(ip[4:], uint16(n>>16))
	binary.BigEndian.PutUint16(ip[6:], uint16(n))
	return netip.AddrFrom16(ip).String()
}

// atMost is how many signals an interface may give in a time.
func (f *fixture) atMost(share int, took time.Duration) uint64 {
	return uint64(share) * (uint64(f.Kernel.cfg.Burst) + uint64(took.Seconds()*float64(f.Kernel.cfg.Rate)) + 1)
}

// TestTokensOfAPod: who scans many clusters gets no more than an interface's share.
func TestTokensOfAPod(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst, cfg.Interval = 1, 10, time.Millisecond })
	wanted := map[netip.Prefix]uint32{}
	const clusters, each = 100, 30
	for c := range clusters {
		wanted[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c)}), 16)] = uint32(c) + 1
	}
	require.NoError(t, f.SetCIDRs(wanted))
	began := monotonic(t)
	scan := func() {
		for n := range each {
			for c := range clusters {
				f.run(t, f.programs.ethernet.Pod, frame("10.200.0.1", fmt.Sprintf("10.%d.0.%d", c, n+1)))
			}
		}
	}
	scan()
	require.GreaterOrEqual(t, f.stats(t).Signals, uint64((podShare-1)*10))
	// Who comes back to all of them has no more either.
	scan()
	require.LessOrEqual(t, f.stats(t).Signals, f.atMost(podShare, monotonic(t)-began))
	buckets := f.buckets(t)
	require.Len(t, buckets[bucketCluster], clusters)
	require.Len(t, buckets[bucketAll], 1)
	require.Len(t, buckets[bucketHeldBack], 1)
	require.Empty(t, buckets[bucketSlice])
}

// TestTokensOfADevice: a scan with all sources that there can be has the device's share.
func TestTokensOfADevice(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst, cfg.Interval = 1, 8, time.Millisecond })
	require.NoError(t, f.SetCIDRs(cidrs()))
	began := monotonic(t)
	scan := func() {
		for n := range 3000 {
			f.run(t, f.programs.ethernet.Uplink, frame(network64(n), "fd00:1::1"))
			f.run(t, f.programs.ethernet.Tunnel, frame(absent(n), "10.1.0.1"))
		}
	}
	scan()
	require.GreaterOrEqual(t, f.stats(t).Signals, uint64((deviceShare-1)*8))
	scan()
	require.LessOrEqual(t, f.stats(t).Signals, f.atMost(deviceShare, monotonic(t)-began))
	buckets := f.buckets(t)
	require.Len(t, buckets[bucketSlice], sourceSlices, "as many as Go believes")
	require.Len(t, buckets[bucketHeldBack], 1)
	require.Empty(t, buckets[bucketCluster])
}

// TestScanFromElsewhere: sources of other slices don't notice a scan, however long it is.
func TestScanFromElsewhere(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst = 1, 8 })
	require.NoError(t, f.SetCIDRs(cidrs()))
	uplink := f.programs.ethernet.Uplink
	for n := range 250 {
		f.run(t, uplink, frame(fmt.Sprintf("10.7.0.%d", n+1), "10.1.0.1"))
		f.run(t, uplink, frame(fmt.Sprintf("fd00:7::%d", n+1), "fd00:1::1"))
	}
	stats := f.stats(t)
	require.Greater(t, stats.RateLimited, stats.Misses/2)
	f.signals(t)
	scanned := len(f.buckets(t)[bucketSlice])
	require.LessOrEqual(t, scanned, 2)

	// Of each family, the first one whose slice is another one.
	for local, source := range map[string]func(n int) string{
		"10.1.0.1":  func(n int) string { return fmt.Sprintf("10.7.%d.1", n) },
		"fd00:1::1": network64,
	} {
		found := false
		for n := 1; n < 100 && !found; n++ {
			before := len(f.buckets(t)[bucketSlice])
			f.run(t, uplink, frame(source(n), local))
			signals := f.signals(t)
			if found = len(f.buckets(t)[bucketSlice]) > before; found {
				require.Equal(t, []netip.Addr{netip.MustParseAddr(source(n))}, addrs(signals), "at its first packet")
			}
		}
		require.True(t, found)
	}
}

// TestScanFromEverywhere has no token left for anybody's first packet; who comes again,
// as who wants to connect does, is signalled.
func TestScanFromEverywhere(t *testing.T) {
	const interval = 10 * time.Millisecond
	for name, test := range map[string]struct {
		program func(*fixture) *ebpf.Program
		packet  func(unknown string) []byte
	}{
		"device": {
			func(f *fixture) *ebpf.Program { return f.programs.ethernet.Uplink },
			func(unknown string) []byte { return frame(unknown, "10.1.0.1") },
		},
		"pod": {
			func(f *fixture) *ebpf.Program { return f.programs.ethernet.Pod },
			func(unknown string) []byte { return frame("10.1.0.1", unknown) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst, cfg.Interval = 1, 4, interval })
			require.NoError(t, f.SetCIDRs(cidrs()))
			next := 0
			scan := func(n int) {
				for range n {
					// Every 199th address, so that all networks have their turn.
					f.run(t, test.program(f), test.packet(absent(next*199%65536)))
					next++
				}
			}
			scan(2000)
			f.signals(t)

			genuine := netip.MustParseAddr("10.7.77.7")
			own := 0
			for signalled := false; !signalled; {
				require.Less(t, own, 5, "its packets")
				f.run(t, test.program(f), test.packet(genuine.String()))
				own++
				signalled = slices.Contains(addrs(f.signals(t)), genuine)
				// 100 packets of the scan for one of its own, and a while.
				scan(100)
				sent := monotonic(t)
				wait(t, func() bool { return monotonic(t)-sent >= 2*interval }, "the limits to let more through")
			}
		})
	}
}
