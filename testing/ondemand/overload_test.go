// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand_test

import (
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/testing/mesh"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// TestScan has a pod send to a million addresses at which there is nothing, as fast as it
// can. What that costs is bounded by limits, what is beyond them is counted, and another
// pod's connection to an address that is there comes about meanwhile.
func TestScan(t *testing.T) {
	const (
		count      = 1_000_000
		part       = 20_000
		rate       = 1000
		maxEntries = 4096
	)
	r := newRig(t, newWorld(t, false), way{side: bpf.SideDestination, flags: mesh.Flags{
		"ondemand-rate": strconv.Itoa(rate), "ondemand-max-entries": strconv.Itoa(maxEntries),
	}})
	r.start()
	scanner, other := r.addPod("scanner", 5), r.addPod("other", 6)
	socket, err := scanner.UDP(netip.AddrPortFrom(scanner.Addrs[0], 0))
	require.NoError(t, err)
	defer socket.Close()

	began, memory := time.Now(), heap()
	reached := make(chan error, 1)
	next, sent := netip.MustParseAddrPort("10.33.0.0:9"), 0
	// At least so many, and until the other one's connection is there, which is begun in
	// the midst of it.
	for connecting, done := false, false; sent < count || !done; sent += part {
		require.NoError(t, netns.Scan(socket, next, part))
		for range part {
			next = netip.AddrPortFrom(next.Addr().Next(), next.Port())
		}
		if next.Addr().Compare(netip.MustParseAddr("10.60.0.0")) > 0 {
			next = netip.MustParseAddrPort("10.33.0.0:9")
		}
		if !connecting && sent >= count/4 {
			connecting = true
			go func() { reached <- r.connectTCP(within(t), other.Namespace, other.Addrs[0], remotes[0]) }()
		}
		select {
		case err := <-reached:
			require.NoError(t, err)
			done = true
		default:
		}
	}
	t.Logf("%d packets in %s", sent, time.Since(began))

	// Every miss is accounted for: signalled, or why not.
	signals := func(result string) float64 { return r.metric("waggle_ondemand_signals_total", "result", result) }
	require.Equal(t, r.metric("waggle_ondemand_packets_total", "result", "miss"), r.metric("waggle_ondemand_signals_total"))
	require.Positive(t, signals("rate-limited"))
	// A second's worth at once, and then so many a second, for each of two interfaces.
	require.LessOrEqual(t, signals("signalled"), 2*rate*(time.Since(began).Seconds()+1))
	// What was signalled is remembered up to a bound.
	for _, kind := range []string{"endpoint", "identity", "absent"} {
		require.LessOrEqual(t, r.metric("waggle_ondemand_entries", "kind", kind), float64(maxEntries))
	}
	require.LessOrEqual(t, r.rows.NumObjects(r.db.ReadTxn()), 3*maxEntries)
	r.eventually(func() bool { return r.metric("waggle_ondemand_waiting_lookups") == 0 }, "nothing waits any more")
	require.Less(t, heap()-memory, int64(64<<20), "memory grows with what is remembered, not with what is sent")
}

// heap is the live heap of this process, which has the agent and the other cluster's
// etcd in it.
func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
