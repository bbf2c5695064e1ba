// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"

	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/node/addressing"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestReservedIdentitiesAreUpstreams(t *testing.T) {
	require.EqualValues(t, identity.ReservedIdentityWorld, identityWorld)
	require.EqualValues(t, identity.ReservedIdentityHealth, identityHealth)
	require.EqualValues(t, identity.ReservedIdentityRemoteNode, identityRemoteNode)
	require.EqualValues(t, identity.ReservedIdentityIngress, identityIngress)
	require.EqualValues(t, identity.ReservedIdentityWorldIPv4, identityWorldIPv4)
	require.EqualValues(t, identity.ReservedIdentityWorldIPv6, identityWorldIPv6)
	require.EqualValues(t, addressing.NodeInternalIP, addressInternal)
	require.EqualValues(t, addressing.NodeExternalIP, addressExternal)
	require.EqualValues(t, addressing.NodeCiliumInternalIP, addressCiliumInternal)
}

func TestEndpointEntry(t *testing.T) {
	v4, v6 := rules{}, rules{underlayIPv6: true}
	for _, test := range []struct {
		name, prefix, host string
		rules              rules
		want               string
	}{
		{"IPv4", "10.0.0.1/32", "192.168.0.1", v4, "10.0.0.1/32 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel"},
		{"IPv6 pod on an IPv4 underlay", "fd00::1/128", "192.168.0.1", v4, "fd00::1/128 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel"},
		{"IPv6 node on an IPv4 underlay", "fd00::1/128", "fd01::1", v4, "fd00::1/128 identity=70000 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>"},
		{"IPv6 underlay", "10.0.0.1/32", "fd01::1", v6, "10.0.0.1/32 identity=70000 encryptkey=0 tunnelendpoint=fd01::1 flags=hastunnel,ipv6tunnel"},
		{"no node", "10.0.0.1/32", "", v4, "10.0.0.1/32 identity=70000 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>"},
		{"mapped host", "10.0.0.1/32", "::ffff:192.168.0.1", v4, "10.0.0.1/32 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel"},
		{"a range", "10.0.0.0/24", "192.168.0.1", v4, "10.0.0.0/24 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel"},
	} {
		t.Run(test.name, func(t *testing.T) {
			entry, ok := test.rules.endpoint(endpoint(remote, test.prefix, test.host, 70000))
			require.True(t, ok)
			require.Equal(t, test.want, entry.String())
		})
	}
	_, ok := v4.endpoint(endpoint(remote, "10.0.0.1/24", "", 70000))
	require.False(t, ok, "a prefix with host bits would escape the claims on the range")
}

func dualStackNode(cluster string) *wire.Node {
	return &wire.Node{
		Name: "n1", Cluster: cluster, EncryptionKey: 3, NodeIdentity: 70000,
		Addresses: []wire.NodeAddress{
			{Type: addressExternal, IP: addr("203.0.113.1")},
			{Type: addressCiliumInternal, IP: addr("10.0.1.1")},
			{Type: addressInternal, IP: addr("192.168.0.1")},
			{Type: addressInternal, IP: addr("fd01::1")},
		},
		PodCIDRs4: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.2.0/24")},
		PodCIDRs6: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")},
		HealthIP4: addr("10.0.1.2"), HealthIP6: addr("fd00:1::2"),
		IngressIP4: addr("10.0.1.3"), IngressIP6: addr("fd00:1::3"),
	}
}

func lines(entries []nodeEntry) []string {
	var out []string
	for _, entry := range entries {
		out = append(out, entry.kind.String()+" "+entry.String())
	}
	return out
}

func TestNodeEntries(t *testing.T) {
	dual := rules{clusterName: "here", ipv4: true, ipv6: true}
	require.Equal(t, []string{
		"node 203.0.113.1/32 identity=6 encryptkey=0 tunnelendpoint=0.0.0.0 flags=remotecluster",
		"node 10.0.1.1/32 identity=6 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel,remotecluster",
		"node 192.168.0.1/32 identity=6 encryptkey=0 tunnelendpoint=0.0.0.0 flags=remotecluster",
		"node fd01::1/128 identity=6 encryptkey=0 tunnelendpoint=0.0.0.0 flags=remotecluster",
		"node 10.0.1.2/32 identity=4 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"node fd00:1::2/128 identity=4 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"node 10.0.1.3/32 identity=8 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"node fd00:1::3/128 identity=8 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"pod-cidr 10.0.1.0/24 identity=9 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"pod-cidr 10.0.2.0/24 identity=9 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"pod-cidr fd00:1::/64 identity=10 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
	}, lines(dual.node(dualStackNode("there"))))

	// A node of the own cluster isn't flagged, and with one family "outside" is
	// plain world.
	single := rules{clusterName: "here", ipv4: true}
	node := dualStackNode("here")
	node.Addresses, node.HealthIP6, node.IngressIP6, node.PodCIDRs6 = node.Addresses[1:3], netip.Addr{}, netip.Addr{}, nil
	require.Equal(t, []string{
		"node 10.0.1.1/32 identity=6 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"node 192.168.0.1/32 identity=6 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>",
		"node 10.0.1.2/32 identity=4 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"node 10.0.1.3/32 identity=8 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"pod-cidr 10.0.1.0/24 identity=2 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
		"pod-cidr 10.0.2.0/24 identity=2 encryptkey=3 tunnelendpoint=192.168.0.1 flags=hastunnel",
	}, lines(single.node(node)))
}

func TestNodeIPIsUpstreams(t *testing.T) {
	// The parts that upstream's ExtractNodeIP distinguishes: type, family, order.
	internal4 := wire.NodeAddress{Type: addressInternal, IP: addr("192.168.0.1")}
	internal6 := wire.NodeAddress{Type: addressInternal, IP: addr("fd01::1")}
	external4 := wire.NodeAddress{Type: addressExternal, IP: addr("203.0.113.1")}
	second4 := wire.NodeAddress{Type: addressExternal, IP: addr("203.0.113.2")}
	cilium4 := wire.NodeAddress{Type: addressCiliumInternal, IP: addr("10.0.1.1")}
	dns4 := wire.NodeAddress{Type: "InternalDNS", IP: addr("198.51.100.1")}
	for _, addresses := range [][]wire.NodeAddress{
		nil,
		{internal4},
		{internal6},
		{cilium4},
		{cilium4, external4, internal4},
		{external4, second4},
		{dns4, external4},
		{external4, dns4},
		{dns4, cilium4},
		{internal6, dns4},
		{internal6, internal4},
	} {
		theirs := make([]upstreamAddress, len(addresses))
		for i, address := range addresses {
			theirs[i] = upstreamAddress(address)
		}
		for _, ipv6 := range []bool{false, true} {
			want, _ := netip.AddrFromSlice(addressing.ExtractNodeIP(theirs, ipv6))
			got := rules{underlayIPv6: ipv6}.nodeIP(&wire.Node{Addresses: addresses})
			require.Equal(t, want.Unmap(), got, "%v, IPv6 %v", addresses, ipv6)
		}
	}
}

type upstreamAddress wire.NodeAddress

func (a upstreamAddress) AddrType() addressing.AddressType { return addressing.AddressType(a.Type) }
func (a upstreamAddress) ToString() string                 { return a.IP.String() }

func TestOutside(t *testing.T) {
	for _, test := range []struct {
		ipv4, ipv6 bool
		want       map[string]uint32
	}{
		{true, true, map[string]uint32{"0.0.0.0/0": 9, "::/0": 10}},
		{true, false, map[string]uint32{"0.0.0.0/0": 2}},
		{false, true, map[string]uint32{"::/0": 2}},
	} {
		got := map[string]uint32{}
		for _, entry := range (rules{ipv4: test.ipv4, ipv6: test.ipv6}).outside() {
			got[entry.Key.String()] = entry.Identity
		}
		require.Equal(t, test.want, got)
	}
}
