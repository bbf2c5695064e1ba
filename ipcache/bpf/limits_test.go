// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// skbuff is the beginning of the context of a test run: the interface it pretends.
type skbuff struct {
	_       [10]uint32
	Ifindex uint32
	_       [37]uint32
}

// runOn gives a frame to a program as if it had come in on an interface of this
// thread's namespace.
func (f *fixture) runOn(t testing.TB, program *ebpf.Program, ifindex int, frame []byte) {
	t.Helper()
	_, err := program.Run(&ebpf.RunOptions{Data: frame, Context: skbuff{Ifindex: uint32(ifindex)}})
	require.NoError(t, err)
}

// absent is the nth address of cluster 7 that nobody knows.
func absent(n int) string {
	return netip.AddrFrom4([4]byte{10, 7, byte(n >> 8), byte(n)}).String()
}

func TestSecondSignalAfterTheInterval(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Interval = time.Millisecond })
	require.NoError(t, f.SetCIDRs(cidrs()))
	var misses []Miss
	wait(t, func() bool {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.9"))
		misses = append(misses, f.signals(t)...)
		return len(misses) >= 3
	}, "signals")
	for i, miss := range misses {
		require.Equal(t, netip.MustParseAddr("10.7.0.9"), miss.Addr)
		if i > 0 {
			require.Greater(t, miss.Time, misses[i-1].Time)
		}
	}
}

// TestTokens has two interfaces and two clusters, of which one interface scans the
// addresses of one cluster.
func TestTokens(t *testing.T) {
	inNamespace(t)
	const burst, rate = 20, 1
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst = rate, burst })
	wanted := cidrs()
	wanted[netip.MustParsePrefix("10.8.0.0/16")] = 8
	require.NoError(t, f.SetCIDRs(wanted))
	first, second := addVeth(t, "lxc1", "pod1"), addVeth(t, "lxc2", "pod2")
	pod := f.programs.ethernet.Pod

	const scan = 500
	began := monotonic(t)
	for i := range scan {
		f.runOn(t, pod, first, frame("10.1.0.1", absent(i)))
	}
	took := monotonic(t) - began
	stats := f.stats(t)
	require.EqualValues(t, scan, stats.Misses)
	require.GreaterOrEqual(t, stats.Signals, uint64(burst))
	require.LessOrEqual(t, stats.Signals, uint64(burst+1+took.Seconds()*rate))
	require.Equal(t, scan-stats.Signals, stats.RateLimited)
	require.Len(t, f.signals(t), int(stats.Signals))

	// Nobody else is kept waiting: not another interface, not another cluster.
	f.runOn(t, pod, second, frame("10.1.0.2", absent(scan)))
	f.runOn(t, pod, first, frame("10.1.0.1", "10.8.0.1"))
	signals := f.signals(t)
	require.Equal(t, []netip.Addr{netip.MustParseAddr(absent(scan)), netip.MustParseAddr("10.8.0.1")}, addrs(signals))
	require.Equal(t, []uint32{uint32(second), uint32(first)}, []uint32{signals[0].Interface, signals[1].Interface})
	require.Equal(t, []uint32{7, 8}, []uint32{signals[0].ClusterID, signals[1].ClusterID})

	// What was held back isn't noted as told: the next packet is, when there are tokens.
	last := absent(scan - 1)
	wait(t, func() bool {
		f.runOn(t, pod, first, frame("10.1.0.1", last))
		return slices.Contains(addrs(f.signals(t)), netip.MustParseAddr(last))
	}, "a token")
}

// TestTokensOfSeveralCPUs: the bound holds when they take tokens at a time, and an
// address is told once.
func TestTokensOfSeveralCPUs(t *testing.T) {
	const burst, workers, scan = 50, 4, 2000
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst = 1, burst })
	require.NoError(t, f.SetCIDRs(cidrs()))
	began := monotonic(t)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range scan {
				packet := frame("10.1.0.1", absent(i))
				if _, err := f.programs.ethernet.Pod.Run(&ebpf.RunOptions{Data: packet}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	took := monotonic(t) - began
	stats := f.stats(t)
	require.EqualValues(t, workers*scan, stats.Misses)
	require.LessOrEqual(t, stats.Signals, uint64(burst+1+took.Seconds()))
	told := addrs(f.signals(t))
	require.Len(t, told, int(stats.Signals))
	slices.SortFunc(told, netip.Addr.Compare)
	require.Len(t, slices.Compact(told), int(stats.Signals), "an address was told twice")
}

func TestFullRing(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.RingBytes, cfg.Burst = os.Getpagesize(), 1<<20 })
	require.NoError(t, f.SetCIDRs(cidrs()))
	const scan = 200
	for i := range scan {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(i)))
	}
	// A signal takes its 48 bytes and a header of 8.
	fit := uint64(os.Getpagesize() / 56)
	require.Equal(t, Stats{Misses: scan, Signals: fit, RingFull: scan - fit}, f.stats(t))
	told := addrs(f.signals(t))
	for i := range int(fit) {
		require.Equal(t, absent(i), told[i].String())
	}
	// Those that didn't fit are told with the next packet, the others aren't again.
	for i := range scan / 2 {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(i)))
	}
	told = addrs(f.signals(t))
	require.Len(t, told, scan/2-int(fit))
	require.Equal(t, absent(int(fit)), told[0].String())
}

// TestMoreAddressesThanAreKept: old ones make room, and nothing is lost.
func TestMoreAddressesThanAreKept(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Rate, cfg.Burst, cfg.RingBytes = 1e6, 1e6, 1<<22 })
	require.NoError(t, f.SetCIDRs(cidrs()))
	const scan = 30_000 // of which the map of signals has half
	for i := range scan {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(i)))
	}
	require.EqualValues(t, scan, f.stats(t).Signals)
	require.Len(t, f.signals(t), scan)
}
