// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The largest mesh: 510 remote clusters with 5 pod CIDRs each, and 500,000 pods in them.
const (
	meshClusters = 510
	meshCIDRs    = 5
	meshPods     = 500_000
)

// meshCIDR is the nth pod CIDR, and meshPod an address in it.
func meshCIDR(v6 bool, n int) netip.Prefix {
	if v6 {
		ip := [16]byte{0: 0xfd, 5: byte(n >> 8), 7: byte(n)}
		return netip.PrefixFrom(netip.AddrFrom16(ip), 64)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
}

func meshPod(cidr netip.Prefix, n int) netip.Addr {
	ip := cidr.Addr().AsSlice()
	binary.BigEndian.PutUint16(ip[len(ip)-2:], binary.BigEndian.Uint16(ip[len(ip)-2:])+uint16(n))
	addr, _ := netip.AddrFromSlice(ip)
	return addr
}

// fillMesh puts the mesh into the maps, with the entries that upstream has besides.
func (f *fixture) fillMesh(t testing.TB, v6 bool) {
	t.Helper()
	f.upsert(t, "0.0.0.0/0", 2)
	f.upsert(t, "::/0", 2)
	cidrs := map[netip.Prefix]uint32{}
	var keys []cidrKey
	var values []missIpcacheValue
	for n := range meshClusters * meshCIDRs {
		cidr := meshCIDR(v6, n)
		cidrs[cidr] = uint32(n/meshCIDRs) + 1
		f.upsert(t, cidr.String(), 2)
		for pod := range meshPods / (meshClusters * meshCIDRs) {
			addr := meshPod(cidr, pod+1)
			keys = append(keys, newCIDRKey(netip.PrefixFrom(addr, addr.BitLen())))
			values = append(values, missIpcacheValue{Identity: cidrs[cidr]<<16 + 256})
		}
	}
	_, err := f.entries.BatchUpdate(keys, values, nil)
	require.NoError(t, err)
	require.NoError(t, f.SetCIDRs(cidrs))
}

// BenchmarkPacket is the time that a program takes for one packet.
func BenchmarkPacket(b *testing.B) {
	for _, recheck := range []time.Duration{DefaultRecheck, -1} {
		for _, family := range []string{"ipv4", "ipv6"} {
			f := newFixture(b, func(cfg *Config) { cfg.Recheck = recheck })
			v6 := family == "ipv6"
			f.fillMesh(b, v6)
			src, outside, local := "10.200.0.1", "8.8.8.8", "10.200.0.2"
			if v6 {
				src, outside, local = "fd00:ffff::1", "2001:db8::1", "fd00:ffff::2"
			}
			cidr := meshCIDR(v6, 1234)
			hit, followed, miss := meshPod(cidr, 77), meshPod(cidr, 78), meshPod(cidr, 250)
			require.NoError(b, f.Follow(followed))
			for _, test := range []struct {
				name, dst string
			}{
				{"hit", hit.String()},
				{"hit-followed", followed.String()},
				{"miss-repeated", miss.String()},
				{"outside", outside},
				{"local-pod", local},
			} {
				b.Run(fmt.Sprintf("%s/%s/%s", recheck, family, test.name), func(b *testing.B) {
					packet := frame(src, test.dst)
					var total time.Duration
					for b.Loop() {
						each, err := f.Measure(KindPod, packet, 1_000_000)
						require.NoError(b, err)
						total += each
					}
					b.ReportMetric(float64(total)/float64(b.N), "ns/packet")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
