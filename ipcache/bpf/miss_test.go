// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Cluster 7 has the addresses below 10.7.0.0/16 and fd00:7::/32.
func cidrs() map[netip.Prefix]uint32 {
	return map[netip.Prefix]uint32{
		netip.MustParsePrefix("10.7.0.0/16"): 7,
		netip.MustParsePrefix("fd00:7::/32"): 7,
	}
}

// monotonic is the clock that signals have.
func monotonic(t testing.TB) time.Duration {
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return time.Duration(now.Nano())
}

func TestPackets(t *testing.T) {
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	// As upstream fills it: everything is the world, and so are pod CIDRs, of which a
	// node with both families has numbers of their own.
	for prefix, identity := range map[string]uint32{
		"0.0.0.0/0": 2, "::/0": 2,
		"10.7.0.0/24": 2, "10.7.1.0/24": 9, "fd00:7:0:2::/64": 10,
		"10.7.3.0/24": 0x01000005, "fd00:7:0:3::/64": 0x01ffffff,
		"10.7.0.1/32": 458753, "fd00:7::1/128": 458754,
		// Nodes and health endpoints are known too.
		"10.7.0.2/32": 6, "10.7.0.3/32": 4,
		// Local identities of nodes, which aren't of the world.
		"10.7.4.0/24": 0x02000001,
	} {
		f.upsert(t, prefix, identity)
	}
	const hit, miss, other = "hit", "miss", "other"
	for _, test := range []struct {
		name, addr, want string
	}{
		{"IPv4, known", "10.7.0.1", hit},
		{"IPv6, known", "fd00:7::1", hit},
		{"a remote node", "10.7.0.2", hit},
		{"a health endpoint", "10.7.0.3", hit},
		{"a node's local identity", "10.7.4.1", hit},
		{"IPv4, world", "10.7.0.9", miss},
		{"IPv4, world IPv4", "10.7.1.9", miss},
		{"IPv6, world IPv6", "fd00:7:0:2::9", miss},
		{"IPv4, identity of a CIDR", "10.7.3.9", miss},
		{"IPv6, identity of a CIDR", "fd00:7:0:3::9", miss},
		{"IPv4, only the entry of everything", "10.7.200.9", miss},
		{"IPv6, only the entry of everything", "fd00:7:0:200::9", miss},
		{"IPv4, elsewhere", "10.8.0.1", other},
		{"IPv4, outside", "8.8.8.8", other},
		{"IPv6, elsewhere", "fd00:8::1", other},
	} {
		for _, side := range []Side{SideDestination, SideSource} {
			t.Run(test.name+", "+side.String(), func(t *testing.T) {
				src, dst, program := "10.1.0.1", test.addr, f.programs.ethernet.Pod
				if netip.MustParseAddr(test.addr).Is6() {
					src = "fd00:1::1"
				}
				if side == SideSource {
					src, dst, program = dst, src, f.programs.ethernet.Uplink
				}
				before, began := f.stats(t), monotonic(t)
				f.run(t, program, frame(src, dst))
				after, ended := f.stats(t), monotonic(t)

				want := before
				switch test.want {
				case hit:
					want.Hits++
				case other:
					want.Others++
				case miss:
					want.Misses++
					if side == SideDestination {
						want.Signals++
					} else {
						// It was told of with the other side.
						want.Repeated++
					}
				}
				require.Equal(t, want, after)
				signals := f.signals(t)
				if want.Signals == before.Signals {
					require.Empty(t, signals)
					return
				}
				require.Len(t, signals, 1)
				require.GreaterOrEqual(t, signals[0].Time, began)
				require.LessOrEqual(t, signals[0].Time, ended)
				signals[0].Time = 0
				require.Equal(t, Miss{
					Addr: netip.MustParseAddr(test.addr), ClusterID: 7, Side: side, Interface: 1,
				}, signals[0])
			})
		}
	}
}
