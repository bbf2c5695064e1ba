// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/cilium/pkg/identity"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func prefixOfText(text string) netip.Prefix {
	prefix, err := parsePrefix(text)
	if err != nil {
		panic(err)
	}
	return prefix
}

// podEndpoint is an endpoint as exporters write it.
func podEndpoint() Endpoint {
	return Endpoint{
		Prefix: prefixOfText("10.1.2.3"), HostIP: netip.MustParseAddr("192.168.0.7"),
		Identity: 65536 + 4711, EncryptionKey: 3,
		Namespace: "shop", Pod: "web-7d9c5b8f4-x2x9z", ServiceAccount: "web",
	}
}

// upstreamPair is what upstream's exporter would make of the same data.
func upstreamPair(e *Endpoint) *identity.IPIdentityPair {
	pair := &identity.IPIdentityPair{
		IP:  net.ParseIP(e.Prefix.Addr().String()),
		ID:  identity.NumericIdentity(e.Identity),
		Key: e.EncryptionKey, Metadata: e.Metadata,
		K8sNamespace: e.Namespace, K8sPodName: e.Pod, K8sServiceAccount: e.ServiceAccount,
	}
	if !e.Prefix.IsSingleIP() {
		pair.Mask = net.CIDRMask(e.Prefix.Bits(), e.Prefix.Addr().BitLen())
	}
	if e.HostIP.IsValid() {
		pair.HostIP = net.ParseIP(e.HostIP.String())
	}
	for _, p := range e.NamedPorts {
		pair.NamedPorts = append(pair.NamedPorts, identity.NamedPort{Name: p.Name, Port: p.Port, Protocol: p.Protocol})
	}
	return pair
}

func TestEndpointGolden(t *testing.T) {
	pod := podEndpoint()
	v6 := pod
	v6.Prefix, v6.HostIP = prefixOfText("fd00::1:2"), netip.MustParseAddr("fd00:ffff::7")
	regional := pod
	regional.Scope = ScopeRegional
	ports := pod
	ports.NamedPorts = []NamedPort{{"http", 8080, "TCP"}, {"dns", 53, "UDP"}}
	escaped := pod
	escaped.Metadata = "<a&b>\"\\\n\u2028é"

	for _, tc := range []struct {
		name, key, value string
		e                Endpoint
	}{
		{"pod", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,"Metadata":"",` +
			`"K8sNamespace":"shop","K8sPodName":"web-7d9c5b8f4-x2x9z","K8sServiceAccount":"web"}`, pod},
		{"ipv6", "fd00::1:2", `{"IP":"fd00::1:2","Mask":null,"HostIP":"fd00:ffff::7","ID":70247,"Key":3,"Metadata":"",` +
			`"K8sNamespace":"shop","K8sPodName":"web-7d9c5b8f4-x2x9z","K8sServiceAccount":"web"}`, v6},
		{"minimal", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":""}`,
			Endpoint{Prefix: prefixOfText("10.1.2.3")}},
		{"prefix", "10.1.0.0/16", `{"IP":"10.1.0.0","Mask":"//8AAA==","HostIP":"","ID":2,"Key":0,"Metadata":""}`,
			Endpoint{Prefix: prefixOfText("10.1.0.0/16"), Identity: 2}},
		{"ipv6 prefix", "fd00::/8", `{"IP":"fd00::","Mask":"/wAAAAAAAAAAAAAAAAAAAA==","HostIP":"","ID":2,"Key":0,"Metadata":""}`,
			Endpoint{Prefix: prefixOfText("fd00::/8"), Identity: 2}},
		{"regional", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,"Metadata":"",` +
			`"K8sNamespace":"shop","K8sPodName":"web-7d9c5b8f4-x2x9z","K8sServiceAccount":"web","SyncScope":"regional"}`, regional},
		{"named ports", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,"Metadata":"",` +
			`"K8sNamespace":"shop","K8sPodName":"web-7d9c5b8f4-x2x9z","K8sServiceAccount":"web",` +
			`"NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"},{"Name":"dns","Port":53,"Protocol":"UDP"}]}`, ports},
		{"escapes", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,` +
			`"Metadata":"\u003ca\u0026b\u003e\"\\\n\u2028é",` +
			`"K8sNamespace":"shop","K8sPodName":"web-7d9c5b8f4-x2x9z","K8sServiceAccount":"web"}`, escaped},
	} {
		t.Run(tc.name, func(t *testing.T) {
			value, err := MarshalEndpoint(&tc.e)
			require.NoError(t, err)
			require.Equal(t, tc.value, string(value))
			require.Equal(t, tc.key, EndpointKey(tc.e.Prefix))

			theirs := upstreamPair(&tc.e)
			require.Equal(t, tc.key, theirs.GetKeyName())
			if tc.e.Scope == ScopeGlobal {
				want, err := theirs.Marshal()
				require.NoError(t, err)
				require.Equal(t, string(want), string(value))
			}
			// Upstream reads ours, additions and all.
			var read identity.IPIdentityPair
			require.NoError(t, read.Unmarshal(tc.key, value))

			got, err := DecodeEndpoint(tc.key, value, nil)
			require.NoError(t, err)
			again, err := MarshalEndpoint(&got)
			require.NoError(t, err)
			require.Equal(t, tc.value, string(again))
			require.Equal(t, tc.e, got)
		})
	}
}

// Addresses have one form, whichever way the caller wrote them.
func TestEndpointAddressForms(t *testing.T) {
	for _, tc := range []struct{ prefix, key string }{
		{"10.1.2.3/32", "10.1.2.3"},
		{"::ffff:10.1.2.3/128", "10.1.2.3"},
		{"::ffff:10.1.2.3/120", "10.1.2.0/24"},
		{"10.1.2.3/24", "10.1.2.0/24"},
		{"fd00::1/64", "fd00::/64"},
	} {
		addr, bits, err := net.ParseCIDR(tc.prefix)
		require.NoError(t, err)
		ones, _ := bits.Mask.Size()
		a, _ := netip.AddrFromSlice(addr)
		if addr.To4() != nil && ones <= 32 {
			a = a.Unmap()
		}
		e := Endpoint{Prefix: netip.PrefixFrom(a, ones), HostIP: netip.MustParseAddr("fe80::1%eth0")}
		value, err := MarshalEndpoint(&e)
		require.NoError(t, err, tc.prefix)
		require.Equal(t, tc.key, EndpointKey(e.Prefix))
		got, err := DecodeEndpoint(tc.key, value, nil)
		require.NoError(t, err, tc.prefix)
		require.Equal(t, tc.key, EndpointKey(got.Prefix))
		require.Equal(t, netip.MustParseAddr("fe80::1"), got.HostIP)
	}

	dst, err := AppendEndpoint([]byte("before"), &Endpoint{})
	require.Error(t, err)
	require.Equal(t, "before", string(dst))
	_, err = MarshalEndpoint(&Endpoint{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 90)})
	require.Error(t, err)
}

// Values that encoding/json takes are taken, as upstream does.
func TestDecodeEndpointUnusual(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  Endpoint
	}{
		"spaces and order":     {` { "ID" : 5 , "IP" : "10.1.2.3" } `, Endpoint{Identity: 5}},
		"case of names":        {`{"ip":"10.1.2.3","id":5,"syncscope":"regional"}`, Endpoint{Identity: 5, Scope: ScopeRegional}},
		"escaped address":      {`{"IP":"10.1.2.\u0033"}`, Endpoint{}},
		"mapped address":       {`{"IP":"::ffff:10.1.2.3","HostIP":"::ffff:10.0.0.1"}`, Endpoint{HostIP: netip.MustParseAddr("10.0.0.1")}},
		"last one counts":      {`{"IP":"10.1.2.3","ID":1,"ID":2}`, Endpoint{Identity: 2}},
		"unknown field":        {`{"IP":"10.1.2.3","Added":{"x":[1]}}`, Endpoint{}},
		"scope of tomorrow":    {`{"IP":"10.1.2.3","SyncScope":"zonal"}`, Endpoint{}},
		"scope in other case":  {`{"IP":"10.1.2.3","SyncScope":"Regional"}`, Endpoint{}},
		"scope of other type":  {`{"IP":"10.1.2.3","SyncScope":{"regional":true}}`, Endpoint{}},
		"scope null":           {`{"IP":"10.1.2.3","SyncScope":null}`, Endpoint{}},
		"scope escaped":        {`{"IP":"10.1.2.3","SyncScope":"region\u0061l"}`, Endpoint{Scope: ScopeRegional}},
		"usual, unknown scope": {`{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":"","SyncScope":"x"}`, Endpoint{}},
		"empty lists": {`{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":"","NamedPorts":[]}`,
			Endpoint{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := DecodeEndpoint("10.1.2.3", []byte(tc.value), nil)
			require.NoError(t, err)
			tc.want.Prefix = prefixOfText("10.1.2.3")
			require.Equal(t, tc.want, got)
		})
	}
}

func TestDecodeEndpointRefusals(t *testing.T) {
	const usual = `"HostIP":"","ID":0,"Key":0,"Metadata":""}`
	for _, tc := range []struct {
		name, key, value string
		reason           Reason
	}{
		{"other address", "10.1.2.3", `{"IP":"10.1.2.4","Mask":null,` + usual, ReasonKeyMismatch},
		{"other length", "10.1.0.0/16", `{"IP":"10.1.0.0","Mask":"////AA==",` + usual, ReasonKeyMismatch},
		{"prefix at an address", "10.1.2.3", `{"IP":"10.1.2.3","Mask":"////AA==",` + usual, ReasonKeyMismatch},
		{"address at a prefix", "10.1.0.0/16", `{"IP":"10.1.0.0","Mask":null,` + usual, ReasonKeyMismatch},
		{"mask for an address", "10.1.2.3", `{"IP":"10.1.2.3","Mask":"/////w==",` + usual, ReasonKeyMismatch},
		{"mask of the other family", "10.0.0.0/8", `{"IP":"10.0.0.0","Mask":"/wAAAAAAAAAAAAAAAAAAAA==",` + usual, ReasonMalformed},
		{"mask with a hole", "0.0.0.0/0", `{"IP":"0.0.0.0","Mask":"/wD/AA==",` + usual, ReasonMalformed},
		{"empty mask", "0.0.0.0/0", `{"IP":"0.0.0.0","Mask":"",` + usual, ReasonMalformed},
		{"no address", "10.1.2.3", `{}`, ReasonMalformed},
		{"address null", "10.1.2.3", `{"IP":null}`, ReasonMalformed},
		{"address empty", "10.1.2.3", `{"IP":""}`, ReasonMalformed},
		{"null", "10.1.2.3", `null`, ReasonMalformed},
		{"empty", "10.1.2.3", ``, ReasonMalformed},
		{"cut off", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":"`, ReasonMalformed},
		{"something behind", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,` + usual + "}", ReasonMalformed},
		{"host is a word", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"x","ID":0,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"host with a zone", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"fe80::1%a","ID":0,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"identity too large", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":4294967296,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"identity far too large", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":99999999999999999999999,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"identity negative", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":-1,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"leading zero", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":01,"Key":0,"Metadata":""}`, ReasonMalformed},
		{"key index too large", "10.1.2.3", `{"IP":"10.1.2.3","Mask":null,"HostIP":"","ID":1,"Key":256,"Metadata":""}`, ReasonMalformed},
		{"control character", "10.1.2.3", "{\"IP\":\"10.1.2.3\",\"Mask\":null,\"HostIP\":\"\",\"ID\":1,\"Key\":0,\"Metadata\":\"\n\"}", ReasonMalformed},
		{"port too large", "10.1.2.3", `{"IP":"10.1.2.3","NamedPorts":[{"Name":"a","Port":65536,"Protocol":"TCP"}]}`, ReasonMalformed},
		{"bad key", "web", `{"IP":"10.1.2.3","Mask":null,` + usual, ReasonBadKey},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeEndpoint(tc.key, []byte(tc.value), nil)
			requireRefusal(t, err, Endpoints, tc.key, tc.reason)
		})
	}
}

func requireRefusal(t *testing.T, err error, r Resource, key string, reason Reason) {
	t.Helper()
	var refusal *Refusal
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, reason, refusal.Reason, "%v", err)
	require.Equal(t, r, refusal.Resource)
	require.Equal(t, key, refusal.Key)
	require.Error(t, refusal.Unwrap())
}

func TestParseEndpointKey(t *testing.T) {
	for _, key := range []string{"10.1.2.3", "0.0.0.0/0", "::/0", "10.0.0.0/8", "fd00::1", "fd00::/8",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"} {
		prefix, err := ParseEndpointKey(key)
		require.NoError(t, err)
		require.Equal(t, key, EndpointKey(prefix))
	}
	for _, key := range []string{"", "/", "10.1.2", "10.1.2.3/", "/8", "10.1.2.3/32", "fd00::1/128", "10.1.2.3/8",
		"10.1.2.3/33", "10.0.0.0/08", "010.0.0.1", "::ffff:10.1.2.3", "FD00::1", "fd00:0::1", "fe80::1%eth0", "10.0.0.1 ",
		"::ffff:10.0.0.0/104", "10.1.2.3/24/24", "a/b/c"} {
		_, err := ParseEndpointKey(key)
		requireRefusal(t, err, Endpoints, key, ReasonBadKey)
	}
}

// text gives strings of all kinds, among them some that are not UTF-8.
func text() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[a-z0-9.-]{0,20}`),
		rapid.String(),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 12), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{"<script>", "a&b", `"`, `\`, "\x7f", "\u2028\u2029", "\xed\xa0\x80", "\x00", "%s"}),
	)
}

// plainText gives strings that survive JSON.
func plainText() *rapid.Generator[string] {
	return rapid.Map(text(), func(s string) string { return string([]rune(s)) })
}

func addr() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "ipv6") {
			a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
			return a.Unmap()
		}
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
	})
}

func prefix() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addr().Draw(t, "address")
		bits := a.BitLen()
		if rapid.Bool().Draw(t, "short") {
			bits = rapid.IntRange(0, bits).Draw(t, "bits")
		}
		return plainPrefix(netip.PrefixFrom(a, bits))
	})
}

func endpoint(text *rapid.Generator[string]) *rapid.Generator[Endpoint] {
	return rapid.Custom(func(t *rapid.T) Endpoint {
		e := Endpoint{
			Prefix:         prefix().Draw(t, "prefix"),
			Identity:       rapid.Uint32().Draw(t, "identity"),
			EncryptionKey:  rapid.Uint8().Draw(t, "key"),
			Scope:          rapid.SampledFrom([]Scope{ScopeGlobal, ScopeRegional}).Draw(t, "scope"),
			Metadata:       text.Draw(t, "metadata"),
			Namespace:      text.Draw(t, "namespace"),
			Pod:            text.Draw(t, "pod"),
			ServiceAccount: text.Draw(t, "account"),
		}
		if rapid.Bool().Draw(t, "has host") {
			e.HostIP = addr().Draw(t, "host")
		}
		for range rapid.IntRange(0, 3).Draw(t, "ports") {
			e.NamedPorts = append(e.NamedPorts, NamedPort{
				Name: text.Draw(t, "name"), Port: rapid.Uint16().Draw(t, "port"), Protocol: text.Draw(t, "protocol"),
			})
		}
		return e
	})
}

func TestEndpointEncodesAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoint(text()).Draw(t, "endpoint")
		e.Scope = ScopeGlobal
		pair := upstreamPair(&e)
		want, err := json.Marshal(pair)
		require.NoError(t, err)
		got, err := MarshalEndpoint(&e)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
		require.Equal(t, pair.GetKeyName(), EndpointKey(e.Prefix))
	})
}

func TestEndpointRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoint(plainText()).Draw(t, "endpoint")
		value, err := MarshalEndpoint(&e)
		require.NoError(t, err)
		got, err := DecodeEndpoint(EndpointKey(e.Prefix), value, nil)
		require.NoError(t, err)
		require.Equal(t, e, got)
	})
}

// What exporters write must not take the slow way.
func TestDecodeEndpointUsual(t *testing.T) {
	e := podEndpoint()
	e.Scope = ScopeRegional
	e.NamedPorts = []NamedPort{{"http", 8080, "TCP"}, {"dns", 53, "UDP"}}
	value, err := MarshalEndpoint(&e)
	require.NoError(t, err)
	got, ok := decodeUsualEndpoint("10.1.2.3", value, func(b []byte) string { return string(b) })
	require.True(t, ok)
	got.Prefix = e.Prefix
	require.Equal(t, e, got)
}

func TestDecodeEndpointInterns(t *testing.T) {
	e := podEndpoint()
	value, err := MarshalEndpoint(&e)
	require.NoError(t, err)
	for _, v := range [][]byte{value, append([]byte(" "), value...)} {
		var interned []string
		_, err = DecodeEndpoint("10.1.2.3", v, func(b []byte) string {
			interned = append(interned, string(b))
			return string(b)
		})
		require.NoError(t, err)
		require.Subset(t, interned, []string{"shop", "web"})
		require.NotContains(t, interned, e.Pod)
	}
}

func FuzzDecodeEndpoint(f *testing.F) {
	for _, seed := range []string{
		`{"IP":"10.1.2.3","Mask":null,"HostIP":"192.168.0.7","ID":70247,"Key":3,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-0","K8sServiceAccount":"web","NamedPorts":[{"Name":"http","Port":80,"Protocol":"TCP"}],"SyncScope":"regional"}`,
		`{"IP":"10.1.2.3","Mask":null,"HostIP":"::ffff:1.2.3.4","ID":0,"Key":255,"Metadata":"","K8sPodName":""}`,
		`{"ip":"10.1.2.3","SyncScope":3}`,
	} {
		f.Add("10.1.2.3", []byte(seed))
	}
	f.Add("10.0.0.0/8", []byte(`{"IP":"10.0.0.0","Mask":"/wAAAA==","HostIP":"","ID":2,"Key":0,"Metadata":"\u003c"}`))
	f.Add("fd00::/8", []byte(`{"IP":"fd00::","Mask":"/wAAAAAAAAAAAAAAAAAAAA=="}`))
	intern := func(b []byte) string { return string(b) }
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e, err := DecodeEndpoint(key, value, nil)

		// Both ways through the decoder agree.
		if prefix, keyErr := ParseEndpointKey(key); keyErr == nil {
			slow, slowErr := decodeAnyEndpoint(key, prefix, value, intern)
			require.Equal(t, slowErr == nil, err == nil, "%v, %v", slowErr, err)
			require.Equal(t, slow, e)
		}
		// What is taken, upstream takes too, and for the same.
		var theirs identity.IPIdentityPair
		if theirErr := theirs.Unmarshal(key, value); err == nil {
			require.NoError(t, theirErr)
			require.Equal(t, theirs.ID.Uint32(), e.Identity)
			require.Equal(t, theirs.K8sPodName, e.Pod)
		}
		if err != nil {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal)
			return
		}
		again, err := MarshalEndpoint(&e)
		require.NoError(t, err)
		require.Equal(t, key, EndpointKey(e.Prefix))
		back, err := DecodeEndpoint(key, again, nil)
		require.NoError(t, err)
		require.Equal(t, e, back)
	})
}

func BenchmarkAppendEndpoint(b *testing.B) {
	e := podEndpoint()
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = AppendEndpoint(buf[:0], &e)
	}
}

func BenchmarkMarshalEndpointUpstream(b *testing.B) {
	e := podEndpoint()
	pair := upstreamPair(&e)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := pair.Marshal(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeEndpoint(b *testing.B) {
	e := podEndpoint()
	value, _ := MarshalEndpoint(&e)
	known := map[string]string{"": "", "shop": "shop", "web": "web", "192.168.0.7": "192.168.0.7"}
	intern := func(b []byte) string { return known[string(b)] }
	spaced := append([]byte(" "), value...)
	b.Run("usual", func(b *testing.B) { benchmarkDecodeEndpoint(b, value, intern) })
	b.Run("any", func(b *testing.B) { benchmarkDecodeEndpoint(b, spaced, intern) })
	b.Run("upstream", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var pair identity.IPIdentityPair
			if err := pair.Unmarshal("10.1.2.3", value); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmarkDecodeEndpoint(b *testing.B, value []byte, intern func([]byte) string) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEndpoint("10.1.2.3", value, intern); err != nil {
			b.Fatal(err)
		}
	}
}
