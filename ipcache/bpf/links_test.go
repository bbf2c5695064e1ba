// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

func TestAttachedProgramSeesPackets(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	lxc := addVeth(t, "lxc1", "pod1")

	require.NoError(t, f.attach(lxc, KindPod))
	require.NoError(t, f.attach(lxc, KindPod), "once more is nothing new")
	require.Equal(t, map[int]Kind{lxc: KindPod}, f.kinds())

	send(t, ifindex(t, "pod1"), frame("10.1.0.1", "10.7.0.9"))
	f.seen(t, Stats{}, 1)
	signals := f.signals(t)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.9")}, addrs(signals))
	require.EqualValues(t, lxc, signals[0].Interface)

	require.NoError(t, f.detach(lxc))
	require.NoError(t, f.detach(lxc))
	require.Empty(t, f.kinds())
	before := f.stats(t)
	send(t, ifindex(t, "pod1"), frame("10.1.0.1", "10.7.0.10"))
	require.Equal(t, before, f.stats(t))

	require.Error(t, f.attach(1<<20, KindPod), "an interface that isn't there")
}

func TestRemove(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	require.NoError(t, f.attach(addVeth(t, "lxc1", "pod1"), KindPod))
	require.ErrorIs(t, Remove(hivetest.Logger(t), f.cfg.Dir), ErrInUse)

	counters, err := f.maps.counters.Clone()
	require.NoError(t, err)
	defer counters.Close()
	count := func() (sum uint64) {
		var perCPU []missCounters
		require.NoError(t, counters.Lookup(uint32(0), &perCPU))
		for _, c := range perCPU {
			sum += c.Misses + c.Hits + c.Others
		}
		return sum
	}
	require.NoError(t, f.Close())
	before := count()
	send(t, ifindex(t, "pod1"), frame("10.1.0.1", "10.7.0.9"))
	wait(t, func() bool { return count() > before }, "a packet: programs outlive the process")

	require.NoError(t, Remove(hivetest.Logger(t), f.cfg.Dir))
	require.NoDirExists(t, f.cfg.Dir)
	before = count()
	send(t, ifindex(t, "pod1"), frame("10.1.0.1", "10.7.0.9"))
	require.Equal(t, before, count())
	require.NoError(t, Remove(hivetest.Logger(t), f.cfg.Dir), "where there is nothing")

	f.open(t)
	require.Empty(t, f.kinds())
}
