// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Upstream's values hold net.IP and net.IPNet, which know neither zones nor the
// difference between an IPv4 address and its mapping into IPv6. What follows
// brings both worlds to one form, so that an address has exactly one key.

// plainAddr is the address without a zone, and as IPv4 if it is a mapped one.
func plainAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// plainPrefix is the prefix in the form that keys have: see plainAddr, and
// without bits after its length. It is invalid if p can't be brought to it.
func plainPrefix(p netip.Prefix) netip.Prefix {
	bits := p.Bits()
	if p.Addr().Is4In6() {
		bits -= 96
	}
	return netip.PrefixFrom(plainAddr(p.Addr()), bits).Masked()
}

// addrOf converts an address that may be absent; the zero Addr stands for that.
func addrOf(ip net.IP) (netip.Addr, error) {
	if len(ip) == 0 {
		return netip.Addr{}, nil
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes", len(ip))
	}
	return addr.Unmap(), nil
}

// ipOf is the inverse of addrOf.
func ipOf(addr netip.Addr) net.IP { return plainAddr(addr).AsSlice() }

// prefixOf converts an address and a mask. Bits after the mask are kept.
func prefixOf(ip net.IP, mask net.IPMask) (netip.Prefix, error) {
	addr, err := addrOf(ip)
	if err != nil {
		return netip.Prefix{}, err
	}
	if !addr.IsValid() {
		return netip.Prefix{}, errors.New("no address")
	}
	ones, size := mask.Size()
	if size == 0 {
		return netip.Prefix{}, fmt.Errorf("%q is not a mask", mask.String())
	}
	if addr.Is4() && size == net.IPv6len*8 {
		// The mask of a mapped address counts the 96 bits of the mapping.
		ones -= 96
	}
	prefix := netip.PrefixFrom(addr, ones)
	if !prefix.IsValid() || (addr.Is6() && size != net.IPv6len*8) {
		return netip.Prefix{}, fmt.Errorf("mask %s is not one for %s", mask, addr)
	}
	return prefix, nil
}

// maskOf is the mask of a prefix, in the length of its family.
func maskOf(p netip.Prefix) net.IPMask { return net.CIDRMask(p.Bits(), p.Addr().BitLen()) }

// notUnicast are the ranges that no pod and no node can have an address in: "this
// network" and the unspecified address, loopback, multicast, and broadcast.
var notUnicast = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"),
	netip.MustParsePrefix("ff00::/8"),
}

// checkUnicast refuses a prefix that contains an address of notUnicast: a cluster
// that claimed one would take over what never leaves a host. It also refuses the
// prefixes by which a cluster would claim half of the Internet and more.
func checkUnicast(prefix netip.Prefix) error {
	for _, other := range notUnicast {
		if prefix.Overlaps(other) {
			return fmt.Errorf("%s overlaps %s", prefix, other)
		}
	}
	return nil
}

func checkUnicastAddr(addr netip.Addr) error {
	return checkUnicast(netip.PrefixFrom(addr, addr.BitLen()))
}
