// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
)

// The largest mesh: 510 remote clusters with 5 pod CIDRs each, and 500,000 pods in them.
const (
	meshClusters = 510
	meshCIDRs    = meshClusters * 5
	meshPods     = 500_000 / meshCIDRs // in each
)

// meshCIDR is the nth pod CIDR, and meshPod an address in it.
func meshCIDR(v6 bool, n int) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(n >> 8), 7: byte(n)}), 64)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
}

func meshPod(cidr netip.Prefix, n int) netip.Addr {
	ip := cidr.Addr().AsSlice()
	ip[len(ip)-1] = byte(n)
	addr, _ := netip.AddrFromSlice(ip)
	return addr
}

// newMesh has a Kernel with the mesh in its maps, and the entries that upstream has
// besides.
func newMesh(b *testing.B, v6 bool, edit func(*Config)) *fixture {
	b.Helper()
	f := newFixture(b, edit)
	f.upsert(b, "0.0.0.0/0", 2)
	f.upsert(b, "::/0", 2)
	cidrs := map[netip.Prefix]uint32{}
	var keys []cidrKey
	var values []missIpcacheValue
	for n := range meshCIDRs {
		cidr := meshCIDR(v6, n)
		cidrs[cidr] = uint32(n%meshClusters) + 1
		f.upsert(b, cidr.String(), 2)
		for pod := range meshPods {
			addr := meshPod(cidr, pod+1)
			keys = append(keys, newCIDRKey(netip.PrefixFrom(addr, addr.BitLen())))
			values = append(values, missIpcacheValue{Identity: cidrs[cidr]<<15 + 256})
		}
	}
	// In no order, as they come: neighbours in the map are none in memory.
	rand.Shuffle(len(keys), func(i, j int) {
		keys[i], keys[j] = keys[j], keys[i]
		values[i], values[j] = values[j], values[i]
	})
	_, err := f.entries.BatchUpdate(keys, values, nil)
	require.NoError(b, err)
	require.NoError(b, f.SetCIDRs(cidrs))
	return f
}

func familyName(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}

// report says what a program run a million times over takes each time: the least of
// some rounds, since whatever else runs only adds to it.
func report(b *testing.B, measure func() (time.Duration, error)) {
	b.Helper()
	least := time.Hour
	for b.Loop() {
		each, err := measure()
		require.NoError(b, err)
		least = min(least, each)
	}
	b.ReportMetric(float64(least), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPacket is what a program takes for one packet, of which the same comes again
// and again: "kept" has the verdict of the one before, "looked-up" has none.
func BenchmarkPacket(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		src, outside, local := "10.200.0.1", "8.8.8.8", "10.200.0.2"
		if v6 {
			src, outside, local = "fd00:ffff::1", "2001:db8::1", "fd00:ffff::2"
		}
		cidr := meshCIDR(v6, 1234)
		known, followed, unknown := meshPod(cidr, 77), meshPod(cidr, 78), meshPod(cidr, 250)
		for _, recheck := range []time.Duration{defaultRecheck, -1} {
			f := newMesh(b, v6, func(cfg *Config) { cfg.Recheck = recheck })
			require.NoError(b, f.Follow(followed))
			how := "kept"
			if recheck < 0 {
				how = "looked-up"
			}
			for _, test := range []struct {
				name, dst string
				hit, miss bool
			}{
				{"hit", known.String(), true, false},
				{"hit-followed", followed.String(), true, false},
				{"miss-repeated", unknown.String(), false, true},
				{"outside", outside, false, false},
				{"local-pod", local, false, false},
			} {
				b.Run(fmt.Sprintf("%s/%s/%s", familyName(v6), how, test.name), func(b *testing.B) {
					packet := frame(src, test.dst)
					before := f.stats(b)
					report(b, func() (time.Duration, error) { return f.Measure(KindPod, packet, 1_000_000) })
					after := f.stats(b)
					require.Equal(b, test.hit, after.Hits > before.Hits, "hits")
					require.Equal(b, test.miss, after.Misses > before.Misses, "misses")
				})
			}
		}
	}
}

// BenchmarkScan is a packet to an absent address for which there is no token.
func BenchmarkScan(b *testing.B) {
	f := newMesh(b, false, func(cfg *Config) { cfg.Rate, cfg.Burst, cfg.Interval = 1, 1, 1 })
	packet := frame("10.200.0.1", meshPod(meshCIDR(false, 1234), 250).String())
	report(b, func() (time.Duration, error) { return f.Measure(KindPod, packet, 1_000_000) })
	stats := f.stats(b)
	require.Greater(b, stats.RateLimited, stats.Misses/2)
}

// BenchmarkLookup is what each part takes: a look-up of the same key all the time, and
// of the addresses of all pods in no order, with the caches of this machine.
func BenchmarkLookup(b *testing.B) {
	f := newMesh(b, false, nil)
	ipcacheKey := cidrKeySize
	for _, part := range []struct {
		name string
		m    *ebpf.Map
		size int
	}{
		{"nothing", nil, ipcacheKey},
		{"ipcache", f.programs.ipcache, ipcacheKey},
		{"cidrs", f.maps.cidrs, ipcacheKey},
		{"seen", f.maps.seen, 16},
		{"counters", f.maps.counters, 4},
	} {
		for _, random := range []bool{false, true} {
			name := part.name + "/same"
			if random {
				name = part.name + "/random"
			}
			b.Run(name, func(b *testing.B) {
				program := lookup(b, part.m, part.size, random)
				report(b, func() (time.Duration, error) {
					_, each, err := program.Benchmark(frame("10.1.0.1", "10.7.0.1"), 1_000_000, nil)
					return each, err
				})
			})
		}
	}
}

// lookup is a program that looks up one pod of the mesh.
func lookup(b *testing.B, m *ebpf.Map, keySize int, random bool) *ebpf.Program {
	b.Helper()
	at := int16(-32)
	key := make([]byte, 32)
	instructions := asm.Instructions{}
	if keySize == cidrKeySize {
		binary.NativeEndian.PutUint32(key, staticPrefixBits+32)
		key[7] = familyIPv4
		pod := meshPod(meshCIDR(false, 1234), 77).As4()
		copy(key[8:], pod[:])
	}
	for i := 0; i < len(key); i += 8 {
		instructions = append(instructions,
			asm.LoadImm(asm.R1, int64(binary.NativeEndian.Uint64(key[i:])), asm.DWord),
			asm.StoreMem(asm.RFP, at+int16(i), asm.R1, asm.DWord))
	}
	if random {
		// A number for the CIDR and one for the pod in it.
		instructions = append(instructions,
			asm.FnGetPrandomU32.Call(),
			asm.Mov.Reg(asm.R1, asm.R0), asm.Mod.Imm(asm.R1, meshCIDRs),
			asm.RSh.Imm(asm.R0, 16), asm.Mod.Imm(asm.R0, meshPods), asm.Add.Imm(asm.R0, 1))
		switch keySize {
		case cidrKeySize:
			instructions = append(instructions,
				asm.StoreMem(asm.RFP, at+11, asm.R0, asm.Byte),
				asm.StoreMem(asm.RFP, at+10, asm.R1, asm.Byte),
				asm.RSh.Imm(asm.R1, 8),
				asm.StoreMem(asm.RFP, at+9, asm.R1, asm.Byte))
		case 16:
			instructions = append(instructions, asm.StoreMem(asm.RFP, at+12, asm.R1, asm.Word))
		}
	}
	if m != nil {
		instructions = append(instructions,
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(at)),
			asm.FnMapLookupElem.Call())
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: append(instructions, asm.Mov.Imm(asm.R0, tcxNext), asm.Return()),
		License:      "GPL",
	})
	require.NoError(b, err)
	b.Cleanup(func() { program.Close() })
	return program
}

// BenchmarkRead is what user space takes for one signal of many.
func BenchmarkRead(b *testing.B) {
	const signals = 60_000
	f := newFixture(b, func(cfg *Config) {
		cfg.Interval, cfg.Rate, cfg.Burst, cfg.RingBytes = 1, 1e9, 1e9, 1<<22
	})
	require.NoError(b, f.SetCIDRs(cidrs()))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range signals {
			f.run(b, f.programs.ethernet.Pod, frame("10.1.0.1", absent(i)))
		}
		b.StartTimer()
		ctx, cancel := context.WithCancel(context.Background())
		read := 0
		require.ErrorIs(b, f.Read(ctx, func(batch []Miss) {
			if read += len(batch); read == signals {
				cancel()
			}
		}), context.Canceled)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(signals*b.N), "ns/signal")
}

// BenchmarkEachSeen reads when 65,536 addresses were used.
func BenchmarkEachSeen(b *testing.B) {
	f := newFixture(b, nil)
	for i := range defaultMaxFollowed {
		require.NoError(b, f.Follow(netip.MustParseAddr(absent(i))))
	}
	b.Run("each", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			require.NoError(b, f.EachSeen(func(netip.Addr, time.Duration) { n++ }))
			require.Equal(b, defaultMaxFollowed, n)
		}
	})
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			seen, err := f.LastSeen()
			require.NoError(b, err)
			require.Len(b, seen, defaultMaxFollowed)
		}
	})
}

// BenchmarkSetCIDRs changes one of 2,550 pod CIDRs.
func BenchmarkSetCIDRs(b *testing.B) {
	f := newFixture(b, nil)
	wanted := map[netip.Prefix]uint32{}
	for n := range meshCIDRs {
		wanted[meshCIDR(false, n)] = 1
	}
	b.ReportAllocs()
	for i := uint32(1); b.Loop(); i++ {
		wanted[meshCIDR(false, 7)] = i%meshClusters + 1
		require.NoError(b, f.SetCIDRs(wanted))
	}
}
