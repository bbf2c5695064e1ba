// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/cilium/pkg/cidr"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	nodetypes "github.com/cilium/cilium/pkg/node/types"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// convertNode gives the converter of CiliumNodes of one cluster. Upstream's own
// parser reads the object, so that a node means here what it means there; since
// it drops silently what it can't parse, that is looked for separately.
func convertNode(cluster wire.ClusterInfo) func(*ciliumv2.CiliumNode, report) (wire.Node, bool) {
	return func(obj *ciliumv2.CiliumNode, report report) (wire.Node, bool) {
		reportNodeAddresses(obj, report)
		parsed := nodetypes.ParseCiliumNode(obj)
		node := wire.Node{
			Name: parsed.Name,
			// Upstream's parser takes these two from its global configuration.
			Cluster:       cluster.Name,
			ClusterID:     cluster.ID,
			PodCIDRs4:     podCIDRs(parsed.IPv4AllocCIDR, parsed.IPv4SecondaryAllocCIDRs),
			PodCIDRs6:     podCIDRs(parsed.IPv6AllocCIDR, parsed.IPv6SecondaryAllocCIDRs),
			HealthIP4:     addrOf(parsed.IPv4HealthIP),
			HealthIP6:     addrOf(parsed.IPv6HealthIP),
			IngressIP4:    addrOf(parsed.IPv4IngressIP),
			IngressIP6:    addrOf(parsed.IPv6IngressIP),
			EncryptionKey: parsed.EncryptionKey,
			Labels:        parsed.Labels,
			Annotations:   parsed.Annotations,
			Source:        string(parsed.Source),
			NodeIdentity:  parsed.NodeIdentity,
			WireGuardKey:  parsed.WireguardPubKey,
			BootID:        parsed.BootID,
		}
		for _, address := range parsed.IPAddresses {
			node.Addresses = append(node.Addresses, wire.NodeAddress{
				Type: string(address.Type),
				IP:   addrOf(address.IP),
			})
		}
		return node, true
	}
}

func podCIDRs(primary *cidr.CIDR, secondary []*cidr.CIDR) []netip.Prefix {
	if primary == nil {
		return nil
	}
	prefixes := make([]netip.Prefix, 0, 1+len(secondary))
	for _, c := range append([]*cidr.CIDR{primary}, secondary...) {
		ones, _ := c.Mask.Size()
		prefixes = append(prefixes, netip.PrefixFrom(addrOf(c.IP), ones))
	}
	return prefixes
}

// addrOf is ip, or the zero Addr where there is none.
func addrOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// reportNodeAddresses reports what upstream's parser will leave out.
func reportNodeAddresses(obj *ciliumv2.CiliumNode, report report) {
	spec := &obj.Spec
	address := func(what, text string) {
		if text == "" {
			return
		}
		if _, err := parseAddress(text); err != nil {
			report(problemAddress, fmt.Errorf("%s: %w", what, err))
		}
	}
	podCIDR := func(text string) {
		if _, _, err := net.ParseCIDR(text); err != nil {
			report(problemAddress, fmt.Errorf("pod CIDR: %w", err))
		}
	}

	for _, a := range spec.Addresses {
		if a.IP == "" {
			report(problemAddress, fmt.Errorf("%s address: it is empty", a.Type))
		}
		address(string(a.Type)+" address", a.IP)
	}
	address("IPv4 health address", spec.HealthAddressing.IPv4)
	address("IPv6 health address", spec.HealthAddressing.IPv6)
	address("IPv4 ingress address", spec.IngressAddressing.IPV4)
	address("IPv6 ingress address", spec.IngressAddressing.IPV6)
	for _, c := range spec.IPAM.PodCIDRs {
		podCIDR(c)
	}
	for _, pool := range spec.IPAM.Pools.Allocated {
		for _, c := range pool.CIDRs {
			podCIDR(string(c))
		}
	}
}

// applyNode writes one node.
func applyNode(origin *state.Origin) apply[wire.Node, struct{}] {
	return func(tx *state.Txn, c change[wire.Node], _ memory[struct{}]) struct{} {
		if c.deleted {
			tx.DeleteNode(origin, origin.Cluster, c.object)
		} else {
			tx.UpsertNode(origin, c.rows)
		}
		return struct{}{}
	}
}
