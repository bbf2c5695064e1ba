// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Reserved identities, as upstream's pkg/identity numbers them.
const (
	identityWorld      = 2
	identityHealth     = 4
	identityRemoteNode = 6
	identityIngress    = 8
	identityWorldIPv4  = 9
	identityWorldIPv6  = 10
)

// Address types of a node, as upstream's pkg/node/addressing names them.
const (
	addressInternal       = "InternalIP"
	addressExternal       = "ExternalIP"
	addressCiliumInternal = "CiliumInternalIP"
)

// rules turn endpoints and nodes into entries the way upstream's agent does for
// what is on other nodes: its node manager, its kvstore watcher and the listener
// behind its ipcache. They hold the settings of the agent that matter there.
//
// Node encryption and the host firewall, which would put node addresses behind
// tunnels too, are settings of the agent's own datapath and are taken as off. A
// node's NodeIdentity isn't used: it served external workloads, and would let a
// cluster give any identity to an address.
type rules struct {
	// clusterName is the local cluster: nodes of others are flagged.
	clusterName string
	// ipv4 and ipv6 say which families are in use; with both, "outside" has an
	// identity of its own in each.
	ipv4, ipv6 bool
	// underlayIPv6 says that tunnels run over IPv6. Over IPv4, a node known by
	// IPv6 alone can't be a tunnel endpoint.
	underlayIPv6 bool
}

// endpoint is the entry of an endpoint; false if its prefix is unusable. A prefix
// in another than its one proper form would escape the claims of the endpoints
// table, which compares prefixes as they are.
func (r rules) endpoint(ep *state.Endpoint) (Entry, bool) {
	key, ok := NewKey(ep.Prefix())
	if !ok || key.Prefix() != ep.Prefix() {
		return Entry{}, false
	}
	return Entry{key, NewValue(ep.Identity(), r.tunnel(ep.HostIP()), ep.EncryptionKey(), 0)}, true
}

// nodeEntry is one entry that a node gives.
type nodeEntry struct {
	Entry
	kind kind
}

// node is what a node gives: its addresses, the health and ingress addresses,
// and its pod CIDRs, so that an unknown pod at least reaches its node. A prefix
// that occurs twice counts once, as what it was first.
func (r rules) node(n *wire.Node) []nodeEntry {
	size := len(n.Addresses) + len(n.PodCIDRs4) + len(n.PodCIDRs6) + 4
	entries := make([]nodeEntry, 0, size)
	add := func(prefix netip.Prefix, value Value, kind kind) {
		key, ok := NewKey(prefix)
		if !ok {
			return
		}
		for i := range entries {
			if entries[i].Key == key {
				return
			}
		}
		entries = append(entries, nodeEntry{Entry{key, value}, kind})
	}

	var flags Flags
	if n.Cluster != r.clusterName {
		flags |= FlagRemoteCluster
	}
	tunnel := r.tunnel(r.nodeIP(n))
	for _, address := range n.Addresses {
		var via netip.Addr
		if address.Type == addressCiliumInternal {
			// It is only known inside the cluster, as a pod's address is.
			via = tunnel
		}
		add(single(address.IP), NewValue(identityRemoteNode, via, 0, flags), kindNode)
	}
	for _, ip := range []netip.Addr{n.HealthIP4, n.HealthIP6} {
		add(single(ip), NewValue(identityHealth, tunnel, n.EncryptionKey, 0), kindNode)
	}
	for _, ip := range []netip.Addr{n.IngressIP4, n.IngressIP6} {
		add(single(ip), NewValue(identityIngress, tunnel, n.EncryptionKey, 0), kindNode)
	}
	for _, cidrs := range [][]netip.Prefix{n.PodCIDRs4, n.PodCIDRs6} {
		for _, cidr := range cidrs {
			add(cidr, NewValue(r.world(cidr.Addr().Unmap()), tunnel, n.EncryptionKey, 0), kindCIDR)
		}
	}
	return entries
}

// outside is the entry of everything else, one for each family in use.
func (r rules) outside() []Entry {
	var entries []Entry
	for _, family := range []struct {
		enabled bool
		addr    netip.Addr
	}{{r.ipv4, netip.IPv4Unspecified()}, {r.ipv6, netip.IPv6Unspecified()}} {
		if family.enabled {
			key, _ := NewKey(netip.PrefixFrom(family.addr, 0))
			entries = append(entries, Entry{key, NewValue(r.world(family.addr), netip.Addr{}, 0, 0)})
		}
	}
	return entries
}

// world is the identity of what is outside, for an address's family.
func (r rules) world(addr netip.Addr) uint32 {
	switch {
	case addr.Is4() && r.ipv6:
		return identityWorldIPv4
	case addr.Is6() && r.ipv4:
		return identityWorldIPv6
	}
	return identityWorld
}

// tunnel is a node's address if tunnels can go there, else the zero address.
func (r rules) tunnel(hostIP netip.Addr) netip.Addr {
	hostIP = hostIP.Unmap()
	if !hostIP.IsValid() || (!r.underlayIPv6 && !hostIP.Is4()) {
		return netip.Addr{}
	}
	return hostIP
}

// nodeIP is the address under which other nodes reach this one: the first
// internal one of the underlay's family, else the last external one, else the
// first of any other type. Cilium's own internal address is never it.
func (r rules) nodeIP(n *wire.Node) (fallback netip.Addr) {
	for _, address := range n.Addresses {
		ip := address.IP.Unmap()
		if !ip.IsValid() || ip.Is6() != r.underlayIPv6 {
			continue
		}
		switch address.Type {
		case addressCiliumInternal:
		case addressInternal:
			return ip
		case addressExternal:
			fallback = ip
		default:
			if !fallback.IsValid() {
				fallback = ip
			}
		}
	}
	return fallback
}

// single is an address as a prefix; the zero address gives an invalid prefix.
func single(ip netip.Addr) netip.Prefix {
	if !ip.IsValid() {
		return netip.Prefix{}
	}
	return state.PrefixOf(ip)
}
