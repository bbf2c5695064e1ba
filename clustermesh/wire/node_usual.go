// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/base64"
	"net"
	"net/netip"
)

// decodeUsualNode is decodeUsualEndpoint for a node: it reads the very form that
// upstream's encoder and ours give one, and whatever is unusual or wrong in any way
// is not ok, and left to encoding/json.
//
// One key in twelve of a large mesh is a node, and by encoding/json it takes as
// long as twenty endpoints do.
func decodeUsualNode(key string, value []byte) (n Node, ok bool) {
	c := cursor{rest: value, ok: true}

	c.literal(`{"Name":`)
	if string(c.text()) != key || key == "" {
		return Node{}, false
	}
	n.Name = key
	c.literal(`,"Cluster":`)
	n.Cluster = string(c.text())
	c.literal(`,"IPAddresses":`)
	n.Addresses = c.nodeAddresses()
	c.literal(`,"IPv4AllocCIDR":`)
	n.PodCIDRs4 = c.primaryCIDR(net.IPv4len)
	c.literal(`,"IPv4SecondaryAllocCIDRs":`)
	n.PodCIDRs4 = c.secondaryCIDRs(n.PodCIDRs4, net.IPv4len)
	c.literal(`,"IPv6AllocCIDR":`)
	n.PodCIDRs6 = c.primaryCIDR(net.IPv6len)
	c.literal(`,"IPv6SecondaryAllocCIDRs":`)
	n.PodCIDRs6 = c.secondaryCIDRs(n.PodCIDRs6, net.IPv6len)
	c.literal(`,"IPv4HealthIP":`)
	n.HealthIP4 = c.maybeAddr()
	c.literal(`,"IPv6HealthIP":`)
	n.HealthIP6 = c.maybeAddr()
	c.literal(`,"IPv4IngressIP":`)
	n.IngressIP4 = c.maybeAddr()
	c.literal(`,"IPv6IngressIP":`)
	n.IngressIP6 = c.maybeAddr()
	c.literal(`,"ClusterID":`)
	n.ClusterID = uint32(c.number(1<<32 - 1))
	c.literal(`,"Source":`)
	n.Source = string(c.text())
	c.literal(`,"EncryptionKey":`)
	n.EncryptionKey = uint8(c.number(1<<8 - 1))
	c.literal(`,"Labels":`)
	n.Labels = c.texts()
	c.literal(`,"Annotations":`)
	n.Annotations = c.texts()
	c.literal(`,"NodeIdentity":`)
	n.NodeIdentity = uint32(c.number(1<<32 - 1))
	c.literal(`,"WireguardPubKey":`)
	n.WireGuardKey = string(c.text())
	c.literal(`,"BootID":`)
	n.BootID = string(c.text())
	c.literal(`}`)
	if !c.ok || len(c.rest) != 0 || n.Cluster == "" {
		return Node{}, false
	}
	return n, true
}

// addr reads an address.
func (c *cursor) addr() netip.Addr {
	addr := c.maybeAddr()
	c.ok = c.ok && addr.IsValid()
	return addr
}

// maybeAddr reads an address, or an empty text, which is the zero Addr.
func (c *cursor) maybeAddr() netip.Addr {
	text := c.text()
	if len(text) == 0 {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(string(text))
	if err != nil || addr.Zone() != "" {
		c.ok = false
		return netip.Addr{}
	}
	return addr.Unmap()
}

func (c *cursor) nodeAddresses() []NodeAddress {
	if c.optional(`null`) {
		return nil
	}
	var addresses []NodeAddress
	for c.literal(`[`); c.ok; c.literal(`,`) {
		c.literal(`{"Type":`)
		kind := string(c.text())
		c.literal(`,"IP":`)
		addresses = append(addresses, NodeAddress{Type: kind, IP: c.addr()})
		c.literal(`}`)
		if c.optional(`]`) {
			break
		}
	}
	return addresses
}

// primaryCIDR reads one CIDR of the family whose addresses have so many bytes, or null.
func (c *cursor) primaryCIDR(family int) []netip.Prefix {
	if c.optional(`null`) {
		return nil
	}
	return []netip.Prefix{c.cidr(family)}
}

// secondaryCIDRs appends a list of CIDRs to dst.
func (c *cursor) secondaryCIDRs(dst []netip.Prefix, family int) []netip.Prefix {
	if c.optional(`null`) {
		return dst
	}
	for c.literal(`[`); c.ok; c.literal(`,`) {
		dst = append(dst, c.cidr(family))
		if c.optional(`]`) {
			break
		}
	}
	return dst
}

func (c *cursor) cidr(family int) netip.Prefix {
	c.literal(`{"IP":`)
	addr := c.addr()
	c.literal(`,"Mask":`)
	text := c.text()
	c.literal(`}`)
	var mask [2 * net.IPv6len]byte
	if !c.ok || addr.BitLen() != 8*family || base64.StdEncoding.DecodedLen(len(text)) > len(mask) {
		c.ok = false
		return netip.Prefix{}
	}
	n, err := base64.StdEncoding.Decode(mask[:], text)
	ones, size := net.IPMask(mask[:n]).Size()
	if err != nil || n != family || size == 0 {
		c.ok = false
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr, ones).Masked()
}

// texts reads an object of texts, or null, which is no map.
func (c *cursor) texts() map[string]string {
	if c.optional(`null`) {
		return nil
	}
	all := map[string]string{}
	if c.optional(`{}`) {
		return all
	}
	for c.literal(`{`); c.ok; c.literal(`,`) {
		name := string(c.text())
		c.literal(`:`)
		all[name] = string(c.text())
		if c.optional(`}`) {
			break
		}
	}
	return all
}
