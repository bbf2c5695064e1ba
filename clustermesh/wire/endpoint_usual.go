// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"net/netip"
)

// decodeUsualEndpoint reads a value in the very form that upstream's encoder
// and ours give a single address: these fields, in this order, no space, no
// escape. ok is false for everything else, whether it is valid or not, and says
// nothing more than "ask encoding/json". e.Prefix is left to the caller.
//
// 500k endpoints arrive in one list: what is saved here is most of the time
// that an agent spends on decoding.
func decodeUsualEndpoint(key string, value []byte, intern func([]byte) string) (e Endpoint, ok bool) {
	c := cursor{rest: value, ok: true}

	c.literal(`{"IP":`)
	// The key is known to be an address in canonical form, so the text needs no
	// parsing of its own; a key with a length never equals it.
	if string(c.text()) != key {
		return Endpoint{}, false
	}
	c.literal(`,"Mask":null,"HostIP":`)
	host := c.text()
	c.literal(`,"ID":`)
	e.Identity = uint32(c.number(1<<32 - 1))
	c.literal(`,"Key":`)
	e.EncryptionKey = uint8(c.number(1<<8 - 1))
	c.literal(`,"Metadata":`)
	metadata := c.text()
	var namespace, pod, account []byte
	if c.optional(`,"K8sNamespace":`) {
		namespace = c.text()
	}
	if c.optional(`,"K8sPodName":`) {
		pod = c.text()
	}
	if c.optional(`,"K8sServiceAccount":`) {
		account = c.text()
	}
	if c.optional(`,"NamedPorts":[`) {
		e.NamedPorts = c.namedPorts(intern)
	}
	if c.optional(`,"SyncScope":`) {
		if string(c.text()) == scopeRegional {
			e.Scope = ScopeRegional
		}
	}
	c.literal(`}`)
	if !c.ok || len(c.rest) != 0 {
		return Endpoint{}, false
	}

	if len(host) > 0 {
		addr, err := netip.ParseAddr(intern(host))
		if err != nil || addr.Zone() != "" {
			return Endpoint{}, false
		}
		e.HostIP = addr.Unmap()
	}
	e.Metadata = string(metadata)
	e.Namespace = intern(namespace)
	e.Pod = string(pod)
	e.ServiceAccount = intern(account)
	return e, true
}

// cursor reads the usual form from left to right. Once something isn't as
// expected ok is false, and all further reads give nothing.
type cursor struct {
	rest []byte
	ok   bool
}

// optional skips s if it comes next, and says whether it did.
func (c *cursor) optional(s string) bool {
	if !c.ok || len(c.rest) < len(s) || string(c.rest[:len(s)]) != s {
		return false
	}
	c.rest = c.rest[len(s):]
	return true
}

// literal skips s, which must come next.
func (c *cursor) literal(s string) {
	c.ok = c.optional(s)
}

// text reads a string that needs no unescaping.
func (c *cursor) text() []byte {
	if !c.optional(`"`) {
		c.ok = false
		return nil
	}
	end := bytes.IndexByte(c.rest, '"')
	if end < 0 {
		c.ok = false
		return nil
	}
	text := c.rest[:end]
	for _, b := range text {
		if !plainJSON(b) {
			c.ok = false
			return nil
		}
	}
	c.rest = c.rest[end+1:]
	return text
}

// number reads a decimal number up to limit, which is less than 2^59.
func (c *cursor) number(limit uint64) uint64 {
	var n uint64
	digits := 0
	for digits < len(c.rest) && c.rest[digits]-'0' <= 9 && n <= limit {
		n = n*10 + uint64(c.rest[digits]-'0')
		digits++
	}
	if !c.ok || digits == 0 || n > limit || (c.rest[0] == '0' && digits > 1) {
		c.ok = false
		return 0
	}
	c.rest = c.rest[digits:]
	return n
}

// namedPorts reads the elements of a non-empty list, and the "]" that ends it.
func (c *cursor) namedPorts(intern func([]byte) string) []NamedPort {
	var ports []NamedPort
	for {
		c.literal(`{"Name":`)
		name := c.text()
		c.literal(`,"Port":`)
		port := uint16(c.number(1<<16 - 1))
		c.literal(`,"Protocol":`)
		protocol := c.text()
		c.literal(`}`)
		if !c.ok {
			return nil
		}
		ports = append(ports, NamedPort{Name: intern(name), Port: port, Protocol: intern(protocol)})
		if !c.optional(`,`) {
			c.literal(`]`)
			return ports
		}
	}
}
