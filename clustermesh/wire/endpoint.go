// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/cilium/cilium/pkg/identity"
)

// scopeRegional is what ScopeRegional looks like in a value. Every other text
// counts as global, so that a scope that a later version adds is synced rather
// than lost.
const scopeRegional = "regional"

// EndpointKey is the key of an endpoint below its prefix: the address alone,
// or address/bits if the prefix is shorter than an address. A prefix has one
// key and a key one prefix: see ParseEndpointKey.
func EndpointKey(prefix netip.Prefix) string {
	var buf [maxEndpointKey]byte
	return string(appendEndpointKey(buf[:0], plainPrefix(prefix)))
}

// maxEndpointKey is the longest key: an IPv6 address in full, and "/127".
const maxEndpointKey = len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127")

func appendEndpointKey(dst []byte, prefix netip.Prefix) []byte {
	if prefix.IsSingleIP() {
		return prefix.Addr().AppendTo(dst)
	}
	return prefix.AppendTo(dst)
}

// ParseEndpointKey is the inverse of EndpointKey. Its error is a *Refusal with
// ReasonBadKey for whatever EndpointKey doesn't make: besides garbage that is an
// address written otherwise than net.IP prints it (upstream refuses those too),
// "/32" or "/128", and bits after the length. The last two are legal upstream,
// but nothing writes them, and they would give an address a second key.
func ParseEndpointKey(key string) (netip.Prefix, error) {
	prefix, err := parsePrefix(key)
	if err != nil {
		return netip.Prefix{}, refuse(Endpoints, key, ReasonBadKey, "%w", err)
	}
	var buf [maxEndpointKey]byte
	if string(appendEndpointKey(buf[:0], prefix)) != key {
		return netip.Prefix{}, refuse(Endpoints, key, ReasonBadKey, "the key should be %q", EndpointKey(prefix))
	}
	return prefix, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if strings.IndexByte(text, '/') >= 0 {
		prefix, err := netip.ParsePrefix(text)
		return plainPrefix(prefix), err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr = plainAddr(addr)
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// MarshalEndpoint is AppendEndpoint into a new slice.
func MarshalEndpoint(e *Endpoint) ([]byte, error) { return AppendEndpoint(nil, e) }

// AppendEndpoint appends the value of an endpoint to dst: byte for byte what
// upstream's identity.IPIdentityPair.Marshal gives for the same data, and after
// that our SyncScope if it isn't global. It fails only for a prefix that is not
// one, and gives dst back as it was. It doesn't allocate as long as dst has room
// and strings need no escape (BenchmarkAppendEndpoint).
func AppendEndpoint(dst []byte, e *Endpoint) ([]byte, error) {
	prefix := plainPrefix(e.Prefix)
	if !prefix.IsValid() {
		return dst, fmt.Errorf("encoding endpoint %s/%s: %q is not an address or a prefix",
			e.Namespace, e.Pod, e.Prefix)
	}
	dst = append(dst, `{"IP":"`...)
	dst = prefix.Addr().AppendTo(dst)
	dst = append(dst, `","Mask":`...)
	if prefix.IsSingleIP() {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, maskOf(prefix))
		dst = append(dst, '"')
	}
	dst = append(dst, `,"HostIP":"`...)
	if e.HostIP.IsValid() {
		dst = plainAddr(e.HostIP).AppendTo(dst)
	}
	dst = append(dst, `","ID":`...)
	dst = strconv.AppendUint(dst, uint64(e.Identity), 10)
	dst = append(dst, `,"Key":`...)
	dst = strconv.AppendUint(dst, uint64(e.EncryptionKey), 10)
	dst = append(dst, `,"Metadata":`...)
	dst = appendJSONString(dst, e.Metadata)
	dst = appendJSONField(dst, `,"K8sNamespace":`, e.Namespace)
	dst = appendJSONField(dst, `,"K8sPodName":`, e.Pod)
	dst = appendJSONField(dst, `,"K8sServiceAccount":`, e.ServiceAccount)
	for i := range e.NamedPorts {
		if i == 0 {
			dst = append(dst, `,"NamedPorts":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"Name":`...)
		dst = appendJSONString(dst, e.NamedPorts[i].Name)
		dst = append(dst, `,"Port":`...)
		dst = strconv.AppendUint(dst, uint64(e.NamedPorts[i].Port), 10)
		dst = append(dst, `,"Protocol":`...)
		dst = appendJSONString(dst, e.NamedPorts[i].Protocol)
		dst = append(dst, '}')
	}
	if len(e.NamedPorts) > 0 {
		dst = append(dst, ']')
	}
	if e.Scope == ScopeRegional {
		dst = append(dst, `,"SyncScope":"`+scopeRegional+`"`...)
	}
	return append(dst, '}'), nil
}

// appendJSONField appends name and value unless the value is empty.
func appendJSONField(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	return appendJSONString(append(dst, name...), value)
}

// appendJSONString quotes s as encoding/json does, HTML escapes included.
func appendJSONString(dst []byte, s string) []byte {
	for i := range len(s) {
		if !plainJSON(s[i]) || s[i] == '<' || s[i] == '>' || s[i] == '&' {
			quoted, _ := json.Marshal(s) // can't fail for a string
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// plainJSON says whether b stands for itself inside a JSON string.
func plainJSON(b byte) bool { return b >= ' ' && b <= '~' && b != '"' && b != '\\' }

// endpointJSON is an endpoint's value, for encoding/json.
type endpointJSON struct {
	identity.IPIdentityPair
	SyncScope scopeJSON
}

// scopeJSON takes any JSON value: the field is ours, so whatever else another
// program puts there must not make the rest of the value unreadable.
type scopeJSON Scope

// UnmarshalJSON never fails.
func (s *scopeJSON) UnmarshalJSON(raw []byte) error {
	var text string
	*s = scopeJSON(ScopeGlobal)
	if json.Unmarshal(raw, &text) == nil && text == scopeRegional {
		*s = scopeJSON(ScopeRegional)
	}
	return nil
}

// DecodeEndpoint decodes the value at a key, which is below the endpoints'
// prefix. What it returns doesn't refer to value.
//
// intern, if not nil, turns the bytes of what repeats over many endpoints (host
// address, namespace, service account, names of ports) into a string. It gets a
// slice of value, so that it can look into a map without allocating, and must
// not keep it.
//
// The error is a *Refusal: ReasonBadKey, ReasonMalformed or ReasonKeyMismatch.
// Values in the form that upstream and we write are read without
// encoding/json, several times faster (BenchmarkDecodeEndpoint); the results
// are the same (FuzzDecodeEndpoint).
func DecodeEndpoint(key string, value []byte, intern func([]byte) string) (Endpoint, error) {
	prefix, err := ParseEndpointKey(key)
	if err != nil {
		return Endpoint{}, err
	}
	if intern == nil {
		intern = func(b []byte) string { return string(b) }
	}
	if e, ok := decodeUsualEndpoint(key, value, intern); ok {
		e.Prefix = prefix
		return e, nil
	}
	return decodeAnyEndpoint(key, prefix, value, intern)
}

// decodeAnyEndpoint decodes what encoding/json takes. prefix is the one of key.
func decodeAnyEndpoint(key string, prefix netip.Prefix, value []byte, intern func([]byte) string) (Endpoint, error) {
	var in endpointJSON
	if err := json.Unmarshal(value, &in); err != nil {
		return Endpoint{}, refuse(Endpoints, key, ReasonMalformed, "%w", err)
	}
	if in.IP == nil {
		return Endpoint{}, refuse(Endpoints, key, ReasonMalformed, "no address")
	}
	// As upstream has it, a value with a mask belongs to a key with a length,
	// even where the mask covers the whole address.
	if got := in.PrefixString(); got != key {
		return Endpoint{}, refuse(Endpoints, key, ReasonKeyMismatch, "the value is that of %q", got)
	}
	if in.Mask != nil {
		if got, err := prefixOf(in.IP, in.Mask); err != nil {
			return Endpoint{}, refuse(Endpoints, key, ReasonMalformed, "%w", err)
		} else if got != prefix {
			return Endpoint{}, refuse(Endpoints, key, ReasonKeyMismatch, "the value is that of %q", got)
		}
	}
	host, err := addrOf(in.HostIP)
	if err != nil {
		return Endpoint{}, refuse(Endpoints, key, ReasonMalformed, "host: %w", err)
	}
	e := Endpoint{
		Prefix:         prefix,
		HostIP:         host,
		Identity:       in.ID.Uint32(),
		EncryptionKey:  in.Key,
		Scope:          Scope(in.SyncScope),
		Metadata:       in.Metadata,
		Namespace:      intern([]byte(in.K8sNamespace)),
		Pod:            in.K8sPodName,
		ServiceAccount: intern([]byte(in.K8sServiceAccount)),
	}
	for _, port := range in.NamedPorts {
		e.NamedPorts = append(e.NamedPorts, NamedPort{
			Name: intern([]byte(port.Name)), Port: port.Port, Protocol: intern([]byte(port.Protocol)),
		})
	}
	return e, nil
}
