// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onOneCPU keeps the rest of the test on one CPU: verdicts are of one.
func onOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	var own, one unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &own))
	for cpu := 0; one.Count() == 0; cpu++ {
		if own.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	require.NoError(t, unix.SchedSetaffinity(0, &one))
	t.Cleanup(func() {
		// Of this thread still: clean-ups run in the test's goroutine.
		require.NoError(t, unix.SchedSetaffinity(0, &own))
		runtime.UnlockOSThread()
	})
}

// TestVerdictsCountForAWhile has them count for longer than the test takes.
func TestVerdictsCountForAWhile(t *testing.T) {
	onOneCPU(t)
	f := newFixture(t, func(cfg *Config) { cfg.Recheck = time.Hour })
	f.upsert(t, "10.7.0.1/32", 458753)
	f.upsert(t, "fd00:7::1/128", 458754)
	known := [][]byte{frame("10.1.0.1", "10.7.0.1"), frame("fd00:1::1", "fd00:7::1")}
	pod := f.programs.ethernet.Pod

	// Of no remote pod, as long as that verdict counts, whatever becomes true meanwhile.
	f.run(t, pod, known[0])
	require.NoError(t, f.SetCIDRs(cidrs()))
	f.run(t, pod, known[0])
	require.Equal(t, Stats{Others: 2}, f.stats(t))

	// The same for what is known; on this CPU, and on either side.
	f.run(t, pod, known[1])
	require.NoError(t, f.entries.Delete(newCIDRKey(netip.MustParsePrefix("fd00:7::1/128"))))
	f.run(t, pod, known[1])
	f.run(t, f.programs.ethernet.Uplink, frame("fd00:7::1", "fd00:1::1"))
	require.Equal(t, Stats{Others: 2, Hits: 3}, f.stats(t))

	// A miss doesn't count for longer than for the packet.
	late := frame("10.1.0.1", "10.7.0.2")
	f.run(t, pod, late)
	f.upsert(t, "10.7.0.2/32", 458755)
	f.run(t, pod, late)
	require.Equal(t, Stats{Others: 2, Hits: 4, Misses: 1, Signals: 1}, f.stats(t))

	// Addresses that share a line never have each other's verdict: of so many some do.
	var others, hits uint64 = 2, 4
	for round := range 2 {
		for i := range 5000 {
			ip := netip.AddrFrom4([4]byte{10, 7, 100 + byte(i>>8), byte(i)})
			if i%2 == 0 {
				ip = netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
				others++
			} else {
				hits++
			}
			if round == 0 && i%2 == 1 {
				f.upsert(t, netip.PrefixFrom(ip, 32).String(), 458800)
			}
			f.run(t, pod, frame("10.1.0.1", ip.String()))
			// And one of IPv6 that differs in its first half alone.
			ip = netip.AddrFrom16([16]byte{0: 0xfd, 3: 9 - 2*byte(i%2), 6: byte(i >> 8), 7: byte(i), 15: 1})
			if i%2 == 0 {
				others++
			} else {
				hits++
			}
			if round == 0 && i%2 == 1 {
				f.upsert(t, netip.PrefixFrom(ip, 128).String(), 458800)
			}
			f.run(t, pod, frame("fd00:1::1", ip.String()))
		}
	}
	require.Equal(t, Stats{Others: others, Hits: hits, Misses: 1, Signals: 1}, f.stats(t))
}

// TestVerdictsPass waits for a deleted entry to be missed.
func TestVerdictsPass(t *testing.T) {
	onOneCPU(t)
	f := newFixture(t, func(cfg *Config) { cfg.Recheck = time.Millisecond })
	require.NoError(t, f.SetCIDRs(cidrs()))
	f.upsert(t, "10.7.0.1/32", 458753)
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.1"))
	require.NoError(t, f.entries.Delete(newCIDRKey(netip.MustParsePrefix("10.7.0.1/32"))))
	wait(t, func() bool {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.1"))
		return f.stats(t).Misses == 1
	}, "the miss")
}
