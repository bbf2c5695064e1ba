// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/binary"
	"strings"
	"unique"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// shared is what the endpoints of one workload have in common.
//
// It is interned by the standard library's unique package rather than by a map
// in the Writer. BenchmarkIntern has the map a third faster (90 ns against
// 120 ns), which is little beside the 1 µs that inserting the row takes. But a
// map needs a rule for when to forget: a namespace per build, or a hostile
// cluster, makes one that has none grow for ever. What unique holds goes with
// the last row that uses it. The handle takes 8 bytes in the row instead of the
// 56 of these four fields.
type shared struct {
	origin         *Origin
	namespace      string
	serviceAccount string
	// ports are the named ports, as encodePorts writes them: a slice can't be
	// compared, and few endpoints have any.
	ports string
}

// intern gives the one copy of what ep shares with others. unique copies the
// strings that it keeps.
func intern(origin *Origin, ep *wire.Endpoint) unique.Handle[shared] {
	return unique.Make(shared{
		origin:         origin,
		namespace:      ep.Namespace,
		serviceAccount: ep.ServiceAccount,
		ports:          encodePorts(ep.NamedPorts),
	})
}

// encodePorts writes each port as its number (two bytes), then name and
// protocol, each after its length as a varint.
func encodePorts(ports []wire.NamedPort) string {
	if len(ports) == 0 {
		return ""
	}
	var buf []byte
	for _, p := range ports {
		buf = binary.BigEndian.AppendUint16(buf, p.Port)
		buf = binary.AppendUvarint(buf, uint64(len(p.Name)))
		buf = append(buf, p.Name...)
		buf = binary.AppendUvarint(buf, uint64(len(p.Protocol)))
		buf = append(buf, p.Protocol...)
	}
	return string(buf)
}

// decodePorts reads what encodePorts wrote; names point into it.
func decodePorts(s string) []wire.NamedPort {
	var ports []wire.NamedPort
	for p, rest, ok := nextPort(s); ok; p, rest, ok = nextPort(rest) {
		ports = append(ports, p)
	}
	return ports
}

// portsAre compares without allocating.
func portsAre(s string, ports []wire.NamedPort) bool {
	for _, want := range ports {
		p, rest, ok := nextPort(s)
		if !ok || p != want {
			return false
		}
		s = rest
	}
	return s == ""
}

func nextPort(s string) (port wire.NamedPort, rest string, ok bool) {
	if s == "" {
		return wire.NamedPort{}, "", false
	}
	port.Port = uint16(s[0])<<8 | uint16(s[1])
	port.Name, s = nextText(s[2:])
	port.Protocol, s = nextText(s)
	return port, s, true
}

func nextText(s string) (text, rest string) {
	var n uint64
	for shift := 0; ; shift += 7 {
		b := s[0]
		s = s[1:]
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return s[:n], s[n:]
		}
	}
}

// copied is claim with strings of its own, for a claim that waits: what waits
// outlives the decoder's buffer too.
func copied(claim Claim) Claim {
	ep := &claim.Endpoint
	ep.Metadata = strings.Clone(ep.Metadata)
	ep.Namespace = strings.Clone(ep.Namespace)
	ep.Pod = strings.Clone(ep.Pod)
	ep.ServiceAccount = strings.Clone(ep.ServiceAccount)
	ep.NamedPorts = decodePorts(encodePorts(ep.NamedPorts))
	return claim
}
