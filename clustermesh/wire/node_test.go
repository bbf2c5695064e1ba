// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"net/netip"
	"path"
	"strings"
	"testing"

	ipamtypes "github.com/cilium/cilium/pkg/ipam/types"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/node/addressing"
	nodestore "github.com/cilium/cilium/pkg/node/store"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

// upstreamNode is what upstream's exporter makes of a CiliumNode.
func upstreamNode(cn *ciliumv2.CiliumNode) *nodetypes.Node {
	n := nodetypes.ParseCiliumNode(cn)
	n.Cluster, n.ClusterID = "east", 7
	return &n
}

// ofUpstream is such a node as ours, without what can't be said on the wire.
func ofUpstream(in *nodetypes.Node) Node {
	n, _ := nodeFromUpstream(in)
	return n
}

func fullCiliumNode() *ciliumv2.CiliumNode {
	return &ciliumv2.CiliumNode{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "node-1",
			Labels:      map[string]string{"kubernetes.io/os": "linux", "a": "<b>"},
			Annotations: map[string]string{"network.cilium.io/wg-pub-key": "key="},
		},
		Spec: ciliumv2.NodeSpec{
			BootID:       "6e4fe1d1",
			NodeIdentity: 6,
			Addresses: []ciliumv2.NodeAddress{
				{Type: addressing.NodeInternalIP, IP: "192.168.0.7"},
				{Type: addressing.NodeCiliumInternalIP, IP: "fd00::7"},
				{Type: addressing.NodeExternalIP, IP: "not an address"},
				{Type: addressing.NodeExternalIP, IP: "::ffff:1.2.3.4"},
			},
			HealthAddressing:  ciliumv2.HealthAddressingSpec{IPv4: "10.1.0.9", IPv6: "fd01::9"},
			IngressAddressing: ciliumv2.AddressPair{IPV4: "10.1.0.8", IPV6: "fd01::8"},
			Encryption:        ciliumv2.EncryptionSpec{Key: 3},
			IPAM: ipamtypes.IPAMSpec{
				PodCIDRs: []string{"10.1.0.0/24", "fd01::/64", "10.2.0.5/24", "nonsense", "fd02::/64"},
				Pools: ipamtypes.IPAMPoolSpec{Allocated: []ipamtypes.IPAMPoolAllocation{
					{Pool: "blue", CIDRs: []ipamtypes.IPAMPodCIDR{"10.3.0.0/26"}},
				}},
			},
		},
	}
}

func TestNodeEncodesAsUpstream(t *testing.T) {
	for name, cn := range map[string]*ciliumv2.CiliumNode{
		"full":       fullCiliumNode(),
		"bare":       {ObjectMeta: metav1.ObjectMeta{Name: "node-2"}},
		"empty maps": {ObjectMeta: metav1.ObjectMeta{Name: "node-3", Labels: map[string]string{}}},
		"ipv6 only":  {ObjectMeta: metav1.ObjectMeta{Name: "node-4"}, Spec: ciliumv2.NodeSpec{IPAM: ipamtypes.IPAMSpec{PodCIDRs: []string{"fd01::/64"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			theirs := upstreamNode(cn)
			want, err := theirs.Marshal()
			require.NoError(t, err)
			ours := ofUpstream(theirs)
			got, err := MarshalNode(&ours)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
			require.Equal(t, path.Join(nodestore.NodeStorePrefix, theirs.GetKeyName()),
				StatePrefix(Nodes, ours.Cluster)+ours.Name)

			back, err := DecodeNode(ours.Name, got)
			require.NoError(t, err)
			require.Equal(t, ours, back)
		})
	}
}

func TestNodeFromUpstream(t *testing.T) {
	n := ofUpstream(upstreamNode(fullCiliumNode()))
	require.Equal(t, Node{
		Name: "node-1", Cluster: "east", ClusterID: 7,
		Addresses: []NodeAddress{
			{"InternalIP", netip.MustParseAddr("192.168.0.7")},
			{"CiliumInternalIP", netip.MustParseAddr("fd00::7")},
			{"ExternalIP", netip.MustParseAddr("1.2.3.4")},
		},
		PodCIDRs4: []netip.Prefix{
			netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("10.3.0.0/26"),
		},
		PodCIDRs6: []netip.Prefix{netip.MustParsePrefix("fd01::/64"), netip.MustParsePrefix("fd02::/64")},
		HealthIP4: netip.MustParseAddr("10.1.0.9"), HealthIP6: netip.MustParseAddr("fd01::9"),
		IngressIP4: netip.MustParseAddr("10.1.0.8"), IngressIP6: netip.MustParseAddr("fd01::8"),
		EncryptionKey: 3,
		Labels:        map[string]string{"kubernetes.io/os": "linux", "a": "<b>"},
		Annotations:   map[string]string{"network.cilium.io/wg-pub-key": "key="},
		Source:        "custom-resource", NodeIdentity: 6, WireGuardKey: "key=", BootID: "6e4fe1d1",
	}, n)

	// What upstream's own process may hold and the wire can't is left out.
	odd := nodetypes.Node{Name: "odd", Cluster: "east", IPAddresses: []nodetypes.Address{{Type: "InternalIP"}}}
	require.Equal(t, Node{Name: "odd", Cluster: "east"}, ofUpstream(&odd))
}

func TestDecodeNodeRefusals(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		reason      Reason
	}{
		{"empty", ``, ReasonMalformed},
		{"null", `null`, ReasonMalformed},
		{"no JSON", `{"Name":`, ReasonMalformed},
		{"no cluster", `{"Name":"node-1"}`, ReasonMalformed},
		{"no name", `{"Cluster":"east"}`, ReasonMalformed},
		{"other name", `{"Name":"node-2","Cluster":"east"}`, ReasonKeyMismatch},
		{"address is a word", `{"Name":"node-1","Cluster":"east","IPAddresses":[{"Type":"InternalIP","IP":"x"}]}`, ReasonMalformed},
		{"address empty", `{"Name":"node-1","Cluster":"east","IPAddresses":[{"Type":"InternalIP","IP":""}]}`, ReasonMalformed},
		{"pod CIDR empty", `{"Name":"node-1","Cluster":"east","IPv4AllocCIDR":{}}`, ReasonMalformed},
		{"pod CIDR without mask", `{"Name":"node-1","Cluster":"east","IPv4AllocCIDR":{"IP":"10.0.0.0"}}`, ReasonMalformed},
		{"pod CIDR without address", `{"Name":"node-1","Cluster":"east","IPv4AllocCIDR":{"Mask":"//8AAA=="}}`, ReasonMalformed},
		{"mask with a hole", `{"Name":"node-1","Cluster":"east","IPv4AllocCIDR":{"IP":"10.0.0.0","Mask":"/wD/AA=="}}`, ReasonMalformed},
		{"mask of the other family", `{"Name":"node-1","Cluster":"east","IPv6AllocCIDR":{"IP":"fd00::","Mask":"//8AAA=="}}`, ReasonMalformed},
		{"pod CIDR of the other family", `{"Name":"node-1","Cluster":"east","IPv6AllocCIDR":{"IP":"10.0.0.0","Mask":"//8AAA=="}}`, ReasonMalformed},
		{"secondary null", `{"Name":"node-1","Cluster":"east","IPv4SecondaryAllocCIDRs":[null]}`, ReasonMalformed},
		{"cluster ID negative", `{"Name":"node-1","Cluster":"east","ClusterID":-1}`, ReasonMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeNode("node-1", []byte(tc.value))
			requireRefusal(t, err, Nodes, "node-1", tc.reason)
		})
	}
	// Bits after the mask are harmless, and the mask of a mapped address too.
	n, err := DecodeNode("node-1", []byte(`{"Name":"node-1","Cluster":"east","IPv4AllocCIDR":{"IP":"10.0.0.5","Mask":"////AA=="},`+
		`"IPv4SecondaryAllocCIDRs":[{"IP":"::ffff:10.9.0.0","Mask":"//////////////////8AAA=="}]}`))
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.9.0.0/16")}, n.PodCIDRs4)
}

func TestNodeRoundTrip(t *testing.T) {
	ofFamily := func(ipv6 bool) *rapid.Generator[netip.Prefix] {
		return prefix().Filter(func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 })
	}
	maybe := rapid.OneOf(rapid.Just(netip.Addr{}), addr())
	nilIfEmpty := func(m map[string]string) map[string]string {
		if len(m) == 0 {
			return nil
		}
		return m
	}
	labels := rapid.Map(rapid.MapOfN(plainText(), plainText(), 0, 4), nilIfEmpty)
	rapid.Check(t, func(t *rapid.T) {
		n := Node{
			Name:          rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, "name"),
			Cluster:       rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, "cluster"),
			ClusterID:     rapid.Uint32().Draw(t, "ID"),
			HealthIP4:     maybe.Draw(t, "health 4"),
			HealthIP6:     maybe.Draw(t, "health 6"),
			IngressIP4:    maybe.Draw(t, "ingress 4"),
			IngressIP6:    maybe.Draw(t, "ingress 6"),
			EncryptionKey: rapid.Uint8().Draw(t, "key"),
			Labels:        labels.Draw(t, "labels"),
			Annotations:   labels.Draw(t, "annotations"),
			Source:        plainText().Draw(t, "source"),
			NodeIdentity:  rapid.Uint32().Draw(t, "identity"),
			WireGuardKey:  plainText().Draw(t, "wireguard"),
			BootID:        plainText().Draw(t, "boot"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "addresses") {
			n.Addresses = append(n.Addresses, NodeAddress{Type: plainText().Draw(t, "type"), IP: addr().Draw(t, "address")})
		}
		for range rapid.IntRange(0, 3).Draw(t, "CIDRs") {
			n.PodCIDRs4 = append(n.PodCIDRs4, ofFamily(false).Draw(t, "CIDR 4"))
			n.PodCIDRs6 = append(n.PodCIDRs6, ofFamily(true).Draw(t, "CIDR 6"))
		}
		value, err := MarshalNode(&n)
		require.NoError(t, err)
		back, err := DecodeNode(n.Name, value)
		require.NoError(t, err)
		require.Equal(t, n, back)
	})
}

// plainNode is a node without anything that JSON has to escape.
func plainNode() Node {
	n := ofUpstream(upstreamNode(fullCiliumNode()))
	n.Labels = map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/hostname": "node-1"}
	return n
}

// TestUsualNode takes the short way for what exporters write, and doesn't for what
// differs from that in any way.
func TestUsualNode(t *testing.T) {
	bare := Node{Name: "node-1", Cluster: "east"}
	for _, n := range []Node{plainNode(), bare} {
		value, err := MarshalNode(&n)
		require.NoError(t, err)
		got, ok := decodeUsualNode(n.Name, value)
		require.True(t, ok, string(value))
		require.Equal(t, n, got)
	}
	n := plainNode()
	value, err := MarshalNode(&n)
	require.NoError(t, err)
	for _, change := range [][2]string{
		{`"node-1"`, `"node-2"`}, {`"east"`, `""`}, {`"linux"`, `"\u006cinux"`}, {`"linux"`, `null`}, {`"192.168.0.7"`, `""`},
		{`"192.168.0.7"`, `"192.168.0.07"`}, {`"fd00::7"`, `"fd00::7%eth0"`}, {`"10.1.0.0"`, `"fd00::1"`}, {`"////AA=="`, `"//8A/w=="`},
		{`"////AA=="`, `"//////////8AAAAAAAAAAA=="`}, {`"////AA=="`, `"////AA"`}, {`"////AA=="`, `"////////////////////////////////////////"`},
		{`"ClusterID":7`, `"ClusterID":4294967296`}, {`"EncryptionKey":3`, `"EncryptionKey":03`}, {`"BootID"`, `"BootId"`}, {`,"NodeIdentity"`, ` ,"NodeIdentity"`},
	} {
		changed := strings.Replace(string(value), change[0], change[1], 1)
		require.NotEqual(t, string(value), changed, change[0])
		_, ok := decodeUsualNode(n.Name, []byte(changed))
		require.False(t, ok, changed)
	}
	for i := range value {
		_, ok := decodeUsualNode(n.Name, value[:i])
		require.False(t, ok, "%s", value[:i])
	}
}

func FuzzDecodeNode(f *testing.F) {
	n := ofUpstream(upstreamNode(fullCiliumNode()))
	value, err := MarshalNode(&n)
	require.NoError(f, err)
	f.Add("node-1", value)
	plain := plainNode()
	if value, err = MarshalNode(&plain); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Name, value)
	f.Add("node-1", []byte(`{"name":"node-1","cluster":"east","IPv4AllocCIDR":{"IP":"10.0.0.5","Mask":"////AA=="}}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		n, err := DecodeNode(key, value)
		any, anyErr := decodeAnyNode(key, value)
		require.Equal(t, anyErr == nil, err == nil)
		require.Equal(t, any, n)
		if err != nil {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal)
			return
		}
		// Upstream reads what we take, but for the cluster's ID, which it checks
		// against global state.
		require.NoError(t, json.Unmarshal(value, &nodetypes.Node{}))
		again, err := MarshalNode(&n)
		require.NoError(t, err)
		back, err := DecodeNode(key, again)
		require.NoError(t, err)
		require.Equal(t, n, back)
	})
}
