// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"net/netip"
	"strings"
)

// Address families of a Key, as in the datapath's lib/eps.h.
const (
	familyIPv4 = 1
	familyIPv6 = 2
)

// staticPrefixBits is how many bits of a Key come before the address. They
// always match in full, so the kernel's prefix length counts them in.
const staticPrefixBits = 32

// Key is a key of the map, laid out as the datapath's struct ipcache_key. The
// tests assert it against upstream's pkg/maps/ipcache.
type Key struct {
	// PrefixLen is in bits, and counts the 32 bits between it and IP too.
	PrefixLen uint32
	// ClusterID is 0: addresses of the clusters of a mesh don't overlap.
	ClusterID uint16
	Pad       uint8
	Family    uint8
	// IP holds an IPv4 address in its first four bytes.
	IP [16]byte
}

// NewKey is the key of a prefix. Bits beyond the prefix are cleared, and an
// IPv4-mapped IPv6 prefix becomes the IPv4 prefix. It is false for a prefix
// that is invalid, or a mapped one shorter than the mapping.
func NewKey(prefix netip.Prefix) (Key, bool) {
	addr, bits := prefix.Addr(), prefix.Bits()
	if !prefix.IsValid() {
		return Key{}, false
	}
	if addr.Is4In6() {
		if bits < 96 {
			return Key{}, false
		}
		addr, bits = addr.Unmap(), bits-96
	}
	masked, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return Key{}, false
	}
	key := Key{PrefixLen: staticPrefixBits + uint32(bits), Family: familyIPv6}
	if masked.Addr().Is4() {
		ip := masked.Addr().As4()
		copy(key.IP[:], ip[:])
		key.Family = familyIPv4
	} else {
		key.IP = masked.Addr().As16()
	}
	return key, true
}

// Prefix is the prefix the key stands for; invalid for a key that isn't one of
// [NewKey]'s.
func (k Key) Prefix() netip.Prefix {
	bits := int(k.PrefixLen) - staticPrefixBits
	switch k.Family {
	case familyIPv4:
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(k.IP[:4])), bits)
	case familyIPv6:
		return netip.PrefixFrom(netip.AddrFrom16(k.IP), bits)
	}
	return netip.Prefix{}
}

// String is the prefix.
func (k Key) String() string { return k.Prefix().String() }

// Flags are the flags of a Value.
type Flags uint8

const (
	// FlagSkipTunnel keeps packets to the entry out of the tunnel.
	FlagSkipTunnel Flags = 1 << iota
	// FlagHasTunnel is set when there is a tunnel endpoint.
	FlagHasTunnel
	// FlagIPv6Tunnel is set when the tunnel endpoint is an IPv6 address.
	FlagIPv6Tunnel
	// FlagRemoteCluster is set on the addresses of other clusters' nodes.
	FlagRemoteCluster
)

// String lists the flags by the names that cilium-dbg gives them.
func (f Flags) String() string {
	names := make([]string, 0, 4)
	for i, name := range []string{"skiptunnel", "hastunnel", "ipv6tunnel", "remotecluster"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "<none>"
	}
	return strings.Join(names, ",")
}

// Value is a value of the map, laid out as the datapath's struct
// remote_endpoint_info. The tests assert it against upstream's pkg/maps/ipcache.
type Value struct {
	Identity uint32
	// Tunnel holds an IPv4 address in its first four bytes.
	Tunnel [16]byte
	Pad    uint16
	// EncryptKey is the index of the IPsec key of the entry's node; 0 is none.
	EncryptKey uint8
	Flags      Flags
}

// NewValue makes a Value; an invalid tunnel address means that there is none.
func NewValue(identity uint32, tunnel netip.Addr, encryptKey uint8, flags Flags) Value {
	value := Value{Identity: identity, EncryptKey: encryptKey, Flags: flags}
	switch tunnel = tunnel.Unmap(); {
	case tunnel.Is4():
		ip := tunnel.As4()
		copy(value.Tunnel[:], ip[:])
		value.Flags |= FlagHasTunnel
	case tunnel.Is6():
		value.Tunnel = tunnel.As16()
		value.Flags |= FlagHasTunnel | FlagIPv6Tunnel
	}
	return value
}

// TunnelEndpoint is the node to send to; 0.0.0.0 when there is none, as
// cilium-dbg shows it.
func (v Value) TunnelEndpoint() netip.Addr {
	if v.Flags&FlagIPv6Tunnel != 0 {
		return netip.AddrFrom16(v.Tunnel)
	}
	return netip.AddrFrom4([4]byte(v.Tunnel[:4]))
}

// String is the value as "cilium-dbg bpf ipcache list" prints it.
func (v Value) String() string {
	return fmt.Sprintf("identity=%d encryptkey=%d tunnelendpoint=%s flags=%s",
		v.Identity, v.EncryptKey, v.TunnelEndpoint(), v.Flags)
}

// Entry is one entry of the map.
type Entry struct {
	Key
	Value
}

// String is the entry as one line.
func (e Entry) String() string { return e.Key.String() + " " + e.Value.String() }
