// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"maps"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func mustCIDRs(ids map[string]uint32) map[netip.Prefix]uint32 {
	all := map[netip.Prefix]uint32{}
	for prefix, id := range ids {
		all[netip.MustParsePrefix(prefix)] = id
	}
	return all
}

func TestSetCIDRs(t *testing.T) {
	f := newFixture(t, nil)
	content := func() map[netip.Prefix]uint32 {
		all, err := f.readCIDRs()
		require.NoError(t, err)
		return all
	}
	first := mustCIDRs(map[string]uint32{"10.7.0.0/16": 7, "10.8.0.0/16": 8, "fd00:7::/32": 7})
	require.NoError(t, f.SetCIDRs(first))
	require.Equal(t, first, content())
	second := mustCIDRs(map[string]uint32{"10.7.0.0/16": 9, "10.7.3.0/24": 3, "fd00:7::/32": 7})
	require.NoError(t, f.SetCIDRs(second))
	require.Equal(t, second, content())

	// The longest one says whose the address is.
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.3.1"))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.4.1"))
	signals := f.signals(t)
	require.EqualValues(t, 3, signals[0].ClusterID)
	require.EqualValues(t, 9, signals[1].ClusterID)

	// What an earlier process left is part of the difference.
	require.NoError(t, f.Close())
	f.open(t)
	require.Equal(t, second, content())
	require.NoError(t, f.SetCIDRs(first))
	require.Equal(t, first, content())

	for name, bad := range map[string]map[netip.Prefix]uint32{
		"10.7.0.1/16": {netip.PrefixFrom(netip.MustParseAddr("10.7.0.1"), 16): 7},
		"cluster 0":   mustCIDRs(map[string]uint32{"10.9.0.0/16": 0}),
		"invalid":     {netip.Prefix{}: 7},
		"::ffff:":     {netip.PrefixFrom(netip.MustParseAddr("::ffff:10.7.0.0"), 112): 7},
	} {
		for prefix, id := range first {
			bad[prefix] = id
		}
		err := f.SetCIDRs(bad)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "1 that aren't pod CIDRs")
		require.Equal(t, first, content(), "the others are in force")
	}
	require.NoError(t, f.SetCIDRs(nil))
	require.Empty(t, content())
}

// TestMoreCIDRsThanFit has a cluster that claims more than there is room for.
func TestMoreCIDRsThanFit(t *testing.T) {
	const room, clusters, each = 100, 10, 5
	f := newFixture(t, func(cfg *Config) { cfg.maxCIDRs = room })
	greedy, wanted := map[netip.Prefix]uint32{}, map[netip.Prefix]uint32{}
	for n := range 50_000 {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 32)
		greedy[prefix], wanted[prefix] = 1, 1
	}
	modest := map[netip.Prefix]uint32{}
	for c := range clusters {
		for n := range each {
			prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10 + byte(c), byte(n)}), 24)
			modest[prefix], wanted[prefix] = uint32(c)+2, uint32(c)+2
		}
	}
	content := func() (all map[netip.Prefix]uint32, byGreedy int) {
		all, err := f.readCIDRs()
		require.NoError(t, err)
		for _, id := range all {
			if id == 1 {
				byGreedy++
			}
		}
		return all, byGreedy
	}

	// On its own it has all the room there is.
	err := f.SetCIDRs(greedy)
	require.ErrorIs(t, err, ErrNoRoom)
	require.ErrorContains(t, err, "49900 pod CIDRs")
	_, byGreedy := content()
	require.Equal(t, room, byGreedy)

	// The others have theirs, when they come, and after a restart.
	for range 2 {
		err = f.SetCIDRs(wanted)
		require.ErrorIs(t, err, ErrNoRoom)
		require.ErrorContains(t, err, "49950 pod CIDRs that don't fit, such as 10.1.0.50/32 of cluster 1")
		require.Less(t, len(err.Error()), 200)
		all, byGreedy := content()
		require.Equal(t, room-clusters*each, byGreedy)
		for prefix, id := range modest {
			require.Equal(t, id, all[prefix], prefix)
		}
		again := f.SetCIDRs(maps.Clone(wanted))
		require.EqualError(t, again, err.Error())
		same, _ := content()
		require.Equal(t, all, same, "it depends on no order")
		require.NoError(t, f.Close())
		f.open(t)
	}

	require.NoError(t, f.SetCIDRs(modest))
	all, _ := content()
	require.Equal(t, modest, all)
}

// TestSharesProperty: who wants no more than its share has it all, and nobody has less
// than another while it wants more.
func TestSharesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(0, 60).Draw(t, "capacity")
		clusters, all := map[uint32][]podCIDR{}, 0
		for id, count := range rapid.MapOf(rapid.Uint32Range(1, 20), rapid.IntRange(1, 30)).Draw(t, "clusters") {
			for n := range count {
				clusters[id] = append(clusters[id], podCIDR{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(id), byte(n)}), 24), id})
			}
			all += count
		}
		unfit := &refusals{}
		got := map[uint32]int{}
		fitting := shares(clusters, capacity, unfit)
		for _, c := range fitting {
			got[c.clusterID]++
		}
		require.Len(t, fitting, min(capacity, all))
		require.Equal(t, all-len(fitting), unfit.count)
		for a := range clusters {
			for b := range clusters {
				if got[a] < len(clusters[a]) {
					require.LessOrEqual(t, got[b], got[a]+1, "cluster %d has less than cluster %d", a, b)
				}
			}
		}
	})
}

// TestCIDRsAndInterfaces: an interface isn't kept waiting while CIDRs are written.
func TestCIDRsAndInterfaces(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	lxc := addVeth(t, "lxc1", "pod1")
	f.cidrsMu.Lock()
	defer f.cidrsMu.Unlock()
	require.NoError(t, f.attach(lxc, KindPod))
	require.Equal(t, map[int]Kind{lxc: KindPod}, f.kinds())
}

// TestSetCIDRsProperty has the kernel with what was asked for last, whatever came before.
func TestSetCIDRsProperty(t *testing.T) {
	f := newFixture(t, nil)
	prefixes := rapid.SampledFrom([]string{
		"0.0.0.0/0", "10.0.0.0/8", "10.7.0.0/16", "10.7.0.0/24", "10.7.1.0/24", "10.7.0.1/32", "::/0", "fd00::/8", "fd00:7::/64",
	})
	sets := rapid.MapOf(prefixes, rapid.Uint32Range(1, 511))
	rapid.Check(t, func(t *rapid.T) {
		wanted := mustCIDRs(sets.Draw(t, "CIDRs"))
		require.NoError(t, f.SetCIDRs(wanted))
		got, err := f.readCIDRs()
		require.NoError(t, err)
		require.Equal(t, wanted, got)
	})
}

func TestLastSeen(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxFollowed = 3 })
	require.NoError(t, f.SetCIDRs(cidrs()))
	for _, addr := range []string{"10.7.0.1", "10.7.0.2", "10.7.0.3", "fd00:7::1"} {
		f.upsert(t, netip.PrefixFrom(netip.MustParseAddr(addr), netip.MustParseAddr(addr).BitLen()).String(), 458753)
	}
	v4, v6, idle := netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd00:7::1"), netip.MustParseAddr("10.7.0.2")
	lastSeen := func() map[netip.Addr]time.Duration {
		seen, err := f.LastSeen()
		require.NoError(t, err)
		return seen
	}
	require.Empty(t, lastSeen())
	require.NoError(t, f.Follow(v4, v6, idle))
	require.Equal(t, map[netip.Addr]time.Duration{v4: 0, v6: 0, idle: 0}, lastSeen())

	// Both sides count as use; what isn't followed isn't noted, and a miss isn't a use.
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.1"))
	f.run(t, f.programs.ethernet.Uplink, frame("fd00:7::1", "fd00:1::1"))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.3"))
	now := monotonic(t)
	seen := lastSeen()
	require.Len(t, seen, 3)
	require.Zero(t, seen[idle])
	for _, addr := range []netip.Addr{v4, v6} {
		require.Positive(t, seen[addr])
		require.LessOrEqual(t, seen[addr], now)
	}

	// Again: the time stays, and moves on after a second.
	require.NoError(t, f.Follow(v4))
	require.Equal(t, seen, lastSeen())
	wait(t, func() bool {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.1"))
		return lastSeen()[v4] > seen[v4]
	}, "a later time")
	require.GreaterOrEqual(t, lastSeen()[v4], seen[v4]+stampInterval)
	require.Equal(t, seen[v6], lastSeen()[v6])

	// Those that take the place of others come before these go; no more than fit, by name.
	var more []netip.Addr
	for i := range f.Kernel.cfg.seenCapacity() {
		more = append(more, netip.MustParseAddr(absent(1000+i)))
	}
	require.Greater(t, len(more), 2*3)
	require.NoError(t, f.Follow(more[3:]...))
	err := f.Follow(more...)
	require.ErrorContains(t, err, "following "+more[0].String())
	require.ErrorContains(t, err, "and so 2 more")
	require.NoError(t, f.Forget(idle, more[0]))
	require.NoError(t, f.Follow(more[1]))
	require.NotContains(t, lastSeen(), idle)
	require.Contains(t, lastSeen(), more[1])
}

func TestManyLastSeen(t *testing.T) {
	f := newFixture(t, nil)
	var addrs []netip.Addr
	for i := range 2*seenBatch + 100 {
		addrs = append(addrs, netip.MustParseAddr(absent(i)))
	}
	require.NoError(t, f.Follow(addrs...))
	seen, err := f.LastSeen()
	require.NoError(t, err)
	require.Len(t, seen, len(addrs))
	require.NoError(t, f.Forget(addrs...))
	seen, err = f.LastSeen()
	require.NoError(t, err)
	require.Empty(t, seen)
}

func TestRead(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.Burst = 1 << 20 })
	require.NoError(t, f.SetCIDRs(cidrs()))
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Miss, 4*maxBatch)
	ended := make(chan error)
	go func() {
		ended <- f.Read(ctx, func(batch []Miss) {
			if len(batch) > maxBatch {
				t.Errorf("a batch of %d", len(batch))
			}
			for _, miss := range batch {
				got <- miss
			}
		})
	}()
	next := func() string {
		select {
		case miss := <-got:
			return miss.Addr.String()
		case <-time.After(patience):
			t.Fatal("no signal")
		}
		return ""
	}
	// One at a time, each at once; and many.
	for i := range 10 {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(i)))
		require.Equal(t, absent(i), next())
	}
	for i := range 3 * maxBatch {
		f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(100+i)))
	}
	for i := range 3 * maxBatch {
		require.Equal(t, absent(100+i), next())
	}
	require.ErrorIs(t, f.Read(t.Context(), func([]Miss) {}), ErrReading)

	// What comes when nobody reads is there for the next one.
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.9.9"))
	ctx, cancel = context.WithCancel(t.Context())
	require.ErrorIs(t, f.Read(ctx, func(batch []Miss) {
		require.Equal(t, "10.7.9.9", batch[0].Addr.String())
		cancel()
	}), context.Canceled)
	require.ErrorIs(t, f.Read(ctx, nil), context.Canceled)
}

// TestReadWithoutSignal has a record behind a signal which turned out to have none: it
// doesn't keep the signal waiting.
func TestReadWithoutSignal(t *testing.T) {
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	none := recordOf(t, f.maps.misses, signalNone)
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(1)))
	f.run(t, none, frame("10.1.0.1", absent(1)))
	require.Equal(t, []netip.Addr{netip.MustParseAddr(absent(1))}, addrs(f.signals(t)))
	f.run(t, none, frame("10.1.0.1", absent(1)))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", absent(2)))
	require.Equal(t, []netip.Addr{netip.MustParseAddr(absent(2))}, addrs(f.signals(t)))
}

// recordOf is a program that writes a record of a number alone.
func recordOf(t testing.TB, ring *ebpf.Map, number int64) *ebpf.Program {
	t.Helper()
	const size = int32(unsafe.Sizeof(missIpcacheMiss{}))
	instructions := asm.Instructions{asm.LoadImm(asm.R1, number, asm.DWord)}
	for at := -size; at < 0; at += 8 {
		instructions = append(instructions, asm.StoreMem(asm.RFP, int16(at), asm.R1, asm.DWord))
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS,
		Instructions: append(instructions,
			asm.LoadMapPtr(asm.R1, ring.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -size),
			asm.Mov.Imm(asm.R3, size),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRingbufOutput.Call(),
			asm.Mov.Imm(asm.R0, tcxNext), asm.Return()),
		License: "GPL",
	})
	require.NoError(t, err)
	t.Cleanup(func() { program.Close() })
	return program
}
