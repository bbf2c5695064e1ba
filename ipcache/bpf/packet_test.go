// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherARP  = 0x0806
	etherVLAN = 0x8100
)

// frame is an Ethernet frame with a UDP packet.
func frame(src, dst string) []byte {
	ip := packet(src, dst)
	kind := uint16(etherIPv6)
	if ip[0]>>4 == 4 {
		kind = etherIPv4
	}
	return ethernet(kind, ip)
}

// ethernet puts a header before a payload.
func ethernet(kind uint16, payload []byte) []byte {
	header := append(make([]byte, 0, 14+len(payload)),
		0x02, 0, 0, 0, 0, 1, // to
		0x02, 0, 0, 0, 0, 2, // from
	)
	return append(binary.BigEndian.AppendUint16(header, kind), payload...)
}

// packet is an IP packet with an empty UDP datagram. Its checksums are right for IPv4's
// header, and absent for UDP where that may be.
func packet(src, dst string) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if from.Is4() {
		header := []byte{0x45, 0, 0, 20 + 8, 0, 1, 0, 0, 64, 17, 0, 0}
		header = append(append(header, from.AsSlice()...), to.AsSlice()...)
		var sum uint32
		for i := 0; i < len(header); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(header[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(header[10:], ^uint16(sum))
		return append(header, emptyUDP...)
	}
	return packetIPv6(src, dst)
}

func packetIPv6(src, dst string) []byte {
	from, to := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, from[:], to[:], emptyUDP)
}

var emptyUDP = []byte{0x30, 0x39, 0x00, 0x09, 0, 8, 0, 0}
