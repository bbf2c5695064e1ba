// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// tunnel is a vxlan device that takes its parameters from each packet.
type tunnel struct {
	t     testing.TB
	index int
	port  int
}

func newTunnel(t testing.TB) *tunnel {
	t.Helper()
	tun := &tunnel{t: t, port: 8472}
	device := &netlink.Vxlan{LinkAttrs: named("cilium_vxlan"), FlowBased: true, Port: tun.port, Learning: false}
	require.NoError(t, netlink.LinkAdd(device))
	tun.index = ifindex(t, "cilium_vxlan")
	require.NoError(t, netlink.LinkSetUp(device))
	return tun
}

// receive has a packet arrive through the tunnel, from a node with this address.
func (tun *tunnel) receive(node string, identity uint32, inner []byte) {
	tun.t.Helper()
	// The socket is made in this thread, which has the namespace.
	conn, err := net.Dial("udp", net.JoinHostPort(node, "8472"))
	require.NoError(tun.t, err)
	defer conn.Close()
	header := make([]byte, 8)
	header[0] = 0x08
	binary.BigEndian.PutUint32(header[4:], identity<<8)
	_, err = conn.Write(append(header, inner...))
	require.NoError(tun.t, err)
}

func TestTunnelIdentity(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	f.upsert(t, "10.7.0.0/24", 2)
	f.upsert(t, "10.7.0.1/32", 0x70001)
	f.upsert(t, "10.7.0.2/32", 0x70001)
	tun := newTunnel(t)
	require.NoError(t, f.attach(tun.index, KindTunnel))

	unknown := func(addr string, identity uint32) []Miss {
		return []Miss{{Addr: netip.MustParseAddr(addr), Identity: identity, ClusterID: 7, Side: SideSource, Interface: uint32(tun.index)}}
	}
	for _, test := range []struct {
		name, node, src string
		identity        uint32
		want            []Miss
	}{
		{"known, and the same identity", "127.0.0.1", "10.7.0.1", 0x70001, nil},
		{"unknown address", "127.0.0.1", "10.7.0.9", 0x70009, unknown("10.7.0.9", 0x70009)},
		{"unknown address, over IPv6", "::1", "10.7.0.10", 0x7000a, unknown("10.7.0.10", 0x7000a)},
		{"unknown address of IPv6, over IPv6", "::1", "fd00:7::9", 0x7000b, unknown("fd00:7::9", 0x7000b)},
		{"known address, another identity", "127.0.0.1", "10.7.0.1", 0x70002, unknown("10.7.0.1", 0x70002)},
		{"another address, the same identity: it was told", "127.0.0.1", "10.7.0.2", 0x70002, nil},
		{"known address, a third identity, over IPv6", "::1", "10.7.0.2", 0x70003, unknown("10.7.0.2", 0x70003)},
		{"known address, from a node", "127.0.0.1", "10.7.0.1", 6, nil},
		{"unknown address, from the world", "127.0.0.1", "10.7.0.11", 2, unknown("10.7.0.11", 0)},
		{"known address, none", "127.0.0.1", "10.7.0.1", 0, nil},
		{"elsewhere", "127.0.0.1", "10.9.0.1", 0x90001, nil},
	} {
		dst := "10.1.0.1"
		if netip.MustParseAddr(test.src).Is6() {
			dst = "fd00:1::1"
		}
		before := f.stats(t)
		tun.receive(test.node, test.identity, frame(test.src, dst))
		f.seen(t, before, 1)
		signals := f.signals(t)
		for i := range signals {
			signals[i].Time = 0
		}
		require.Equal(t, test.want, signals, test.name)
	}
}

// TestTunnelIdentityDespiteAVerdict: what is known of the address doesn't hide another
// identity in the header.
func TestTunnelIdentityDespiteAVerdict(t *testing.T) {
	onOneCPU(t)
	inNamespace(t)
	f := newFixture(t, func(cfg *Config) { cfg.Recheck = patience })
	require.NoError(t, f.SetCIDRs(cidrs()))
	f.upsert(t, "10.7.0.1/32", 0x70001)
	tun := newTunnel(t)
	require.NoError(t, f.attach(tun.index, KindTunnel))
	for range 3 {
		tun.receive("127.0.0.1", 0x70001, frame("10.7.0.1", "10.1.0.1"))
	}
	f.seen(t, Stats{}, 3)
	require.Empty(t, f.signals(t))
	before := f.stats(t)
	tun.receive("127.0.0.1", 0x70002, frame("10.7.0.1", "10.1.0.1"))
	f.seen(t, before, 1)
	signals := f.signals(t)
	require.Len(t, signals, 1)
	require.EqualValues(t, 0x70002, signals[0].Identity)
}
