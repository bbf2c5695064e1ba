// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/store"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/stretchr/testify/require"
)

func TestCheckEndpoint(t *testing.T) {
	v := NewValidator("east", 7, 255)
	for _, id := range []uint32{0, 1, 2, 6, 128, 255, 7 << 16, 8<<16 - 1} {
		require.NoError(t, v.CheckEndpoint("10.1.2.3", &Endpoint{Identity: id}), "%d", id)
	}
	// Of cluster 0, the neighbours, and identities that are local to a node.
	for _, id := range []uint32{256, 65535, 7<<16 - 1, 8 << 16, 1 << 24, 2 << 24, 1<<32 - 1} {
		requireRefusal(t, v.CheckEndpoint("10.1.2.3", &Endpoint{Identity: id}), Endpoints, "10.1.2.3", ReasonIdentityRange)
	}
	// A cluster that is in no mesh.
	require.NoError(t, NewValidator("default", 0, 255).CheckEndpoint("10.1.2.3", &Endpoint{Identity: 256}))
}

func TestCheckAddresses(t *testing.T) {
	v := NewValidator("east", 7, 255)
	bad := []string{
		"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/32", "127.0.0.0/8", "127.0.0.1/32", "224.0.0.1/32",
		"255.255.255.255/32", "::/0", "8000::/1", "::/128", "::1/128", "ff02::1/128",
	}
	good := []string{
		"10.1.2.3/32", "10.0.0.0/8", "8.8.8.8/32", "100.64.0.0/10", "240.0.0.1/32", "169.254.23.0/32", "fd00::/8",
		"2000::/3", "fe80::1/128", "64:ff9b::/96",
	}
	node := func(change func(*Node)) *Node {
		n := &Node{Name: "n", Cluster: "east", ClusterID: 7}
		change(n)
		return n
	}
	claims := func(prefix netip.Prefix) map[string]error {
		errs := map[string]error{
			"endpoint": v.CheckEndpoint("key", &Endpoint{Prefix: prefix}),
			"CIDR4":    v.CheckNode(node(func(n *Node) { n.PodCIDRs4 = []netip.Prefix{prefix} })),
			"CIDR6":    v.CheckNode(node(func(n *Node) { n.PodCIDRs6 = []netip.Prefix{prefix} })),
		}
		if prefix.IsSingleIP() {
			errs["address"] = v.CheckNode(node(func(n *Node) { n.Addresses = []NodeAddress{{IP: prefix.Addr()}} }))
			errs["health"] = v.CheckNode(node(func(n *Node) { n.HealthIP6 = prefix.Addr() }))
		}
		return errs
	}
	for _, text := range bad {
		for what, err := range claims(netip.MustParsePrefix(text)) {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal, "%s %s", what, text)
			require.Equal(t, ReasonBadAddress, refusal.Reason)
		}
	}
	for _, text := range good {
		for what, err := range claims(netip.MustParsePrefix(text)) {
			require.NoError(t, err, "%s %s", what, text)
		}
	}
}

func TestCheckIdentity(t *testing.T) {
	v := NewValidator("east", 7, 255)
	const cluster = "k8s:io.cilium.k8s.policy.cluster"
	for _, tc := range []struct {
		id     uint32
		labels string
		reason Reason
	}{
		{7 << 16, cluster + "=east;", ""},
		{8<<16 - 1, "k8s:app=web;" + cluster + "=east;k8s:x=;", ""},
		{7 << 16, cluster + "=east;" + cluster + "=east;", ""},
		{7<<16 - 1, cluster + "=east;", ReasonIdentityRange},
		{8 << 16, cluster + "=east;", ReasonIdentityRange},
		{1, cluster + "=east;", ReasonIdentityRange},
		{7 << 16, "k8s:app=web;", ReasonForeignLabel},
		{7 << 16, "", ReasonForeignLabel},
		{7 << 16, ";;", ReasonForeignLabel},
		{7 << 16, cluster + "=west;", ReasonForeignLabel},
		{7 << 16, cluster + "=easter;", ReasonForeignLabel},
		{7 << 16, cluster + "=;", ReasonForeignLabel},
		{7 << 16, cluster + "=east;" + cluster + "=west;", ReasonForeignLabel},
		{7 << 16, cluster + "=east;any:io.cilium.k8s.policy.cluster=east;", ReasonForeignLabel},
		{7 << 16, "any:io.cilium.k8s.policy.cluster=east;", ReasonForeignLabel},
		{7 << 16, "io.cilium.k8s.policy.cluster=east;", ReasonForeignLabel},
		{7 << 16, "$io.cilium.k8s.policy.cluster=east;", ReasonForeignLabel},
	} {
		err := v.CheckIdentity(&Identity{ID: tc.id, Labels: tc.labels})
		if tc.reason == "" {
			require.NoError(t, err, tc.labels)
		} else {
			requireRefusal(t, err, Identities, IdentityKey(tc.id), tc.reason)
		}
	}
}

func TestCheckClusterOfObjects(t *testing.T) {
	v := NewValidator("east", 7, 255)
	require.NoError(t, v.CheckNode(&Node{Name: "n", Cluster: "east", ClusterID: 7}))
	requireRefusal(t, v.CheckNode(&Node{Name: "n", Cluster: "west", ClusterID: 7}), Nodes, "n", ReasonForeignCluster)
	requireRefusal(t, v.CheckNode(&Node{Name: "n", Cluster: "east", ClusterID: 8}), Nodes, "n", ReasonForeignCluster)
	requireRefusal(t, v.CheckNode(&Node{Name: "n", Cluster: "east"}), Nodes, "n", ReasonForeignCluster)

	service := func(cluster string, id uint32) *Service {
		return &Service{Namespace: "shop", Name: "web", Cluster: cluster, ClusterID: id}
	}
	require.NoError(t, v.CheckService(service("east", 7)))
	requireRefusal(t, v.CheckService(service("west", 7)), Services, "shop/web", ReasonForeignCluster)
	requireRefusal(t, v.CheckService(service("east", 8)), Services, "shop/web", ReasonForeignCluster)

	export := func(cluster string) *ServiceExport {
		return &ServiceExport{Namespace: "shop", Name: "web", Cluster: cluster}
	}
	require.NoError(t, v.CheckServiceExport(export("east")))
	requireRefusal(t, v.CheckServiceExport(export("west")), ServiceExports, "shop/web", ReasonForeignCluster)
}

func TestCheckKey(t *testing.T) {
	v := NewValidator("east", 7, 255)
	good := map[Resource][]string{
		Endpoints:      {"10.1.2.3", "fd00::1", "10.0.0.0/8"},
		Identities:     {IdentityKey(7 << 16), IdentityKey(8<<16 - 1)},
		Nodes:          {"node-1", "ip-10-0-0-1.ec2.internal", strings.Repeat("n", 253)},
		Services:       {"shop/web"},
		ServiceExports: {"shop/web"},
		EndpointSlices: {"web-x2x9z", "shop/web-x2x9z", "a/b/c"},
	}
	require.Len(t, good, len(Resources))
	for r, keys := range good {
		for _, key := range keys {
			require.NoError(t, v.CheckKey(r, key), "%s %s", r, key)
			require.Zero(t, testing.AllocsPerRun(10, func() { _ = v.CheckKey(r, key) }), "%s %s", r, key)
		}
	}
	for r, keys := range map[Resource][]string{
		Endpoints:      {"", "x", "10.1.2.3/32", "10.1.2.3/", "/10.1.2.3"},
		Identities:     {"", "x", "0", "065536", "id/65536"},
		Nodes:          {"", "a/b", "/", ".", "..", "a b", "a\n", "é", strings.Repeat("n", 254)},
		Services:       {"", "web", "/web", "shop/", "shop//web", "shop/web/x", "../web", "shop/."},
		ServiceExports: {"web", "a/b/c"},
		EndpointSlices: {"", "/", "a/", "a//b", "a/../b"},
	} {
		for _, key := range keys {
			requireRefusal(t, v.CheckKey(r, key), r, key, ReasonBadKey)
		}
	}
	requireRefusal(t, v.CheckKey(Identities, "1"), Identities, "1", ReasonIdentityRange)
	requireRefusal(t, v.CheckKey(Identities, "524288"), Identities, "524288", ReasonIdentityRange)
}

func TestMaxLookupBytes(t *testing.T) {
	lookup := IdentityLookup("amber", 65540)
	require.NoError(t, CheckLookupSize(lookup, make([]byte, MaxLookupBytes)))
	requireRefusal(t, CheckLookupSize(lookup, make([]byte, MaxLookupBytes+1)), Identities, "65540", ReasonTooLarge)
}

func TestMaxValueBytes(t *testing.T) {
	require.NoError(t, CheckSize(Services, "shop/web", make([]byte, MaxValueBytes)))
	requireRefusal(t, CheckSize(Services, "shop/web", make([]byte, MaxValueBytes+1)), Services, "shop/web", ReasonTooLarge)

	// The largest thing that a cluster legitimately says fits: a service with
	// 5,000 backends, with all that upstream can say about each.
	s := globalService()
	for i := range 5000 {
		ip := fmt.Sprintf("10.200.%d.%d", i/250, i%250)
		s.Backends[ip] = store.PortConfiguration{"http": {Protocol: loadbalancer.TCP, Port: 8080}}
		s.Hostnames[ip] = fmt.Sprintf("web-%d", i)
		s.Zones[ip] = store.BackendZone{Zone: "eu-west-1a", ForZones: []store.ForZone{{Name: "eu-west-1a"}}}
	}
	value, err := MarshalService(s)
	require.NoError(t, err)
	require.NoError(t, CheckSize(Services, "shop/web", value), "%d bytes", len(value))
}

// What a hostile cluster makes us log is bounded.
func TestRefusalIsShort(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, err := range []error{
		NewValidator("east", 7, 255).CheckKey(Nodes, long),
		NewValidator("east", 7, 255).CheckKey(Endpoints, long),
		NewValidator("east", 7, 255).CheckKey(Identities, long),
		NewValidator("east", 7, 255).CheckIdentity(&Identity{ID: 7 << 16, Labels: LabelCluster + "=" + long}),
		NewValidator("east", 7, 255).CheckNode(&Node{Cluster: long}),
	} {
		require.Error(t, err)
		require.Less(t, len(err.Error()), 1024)
	}
}

func FuzzCheckKey(f *testing.F) {
	f.Add("10.1.2.3")
	f.Add("fd00::/8")
	f.Add("70247")
	f.Add("shop/web")
	v := NewValidator("east", 1, 255)
	f.Fuzz(func(t *testing.T, key string) {
		for _, r := range Resources {
			if err := v.CheckKey(r, key); err != nil {
				var refusal *Refusal
				require.ErrorAs(t, err, &refusal)
				continue
			}
			switch r {
			case Endpoints:
				prefix, err := ParseEndpointKey(key)
				require.NoError(t, err)
				require.Equal(t, key, EndpointKey(prefix))
			case Identities:
				id, err := ParseIdentityKey(key)
				require.NoError(t, err)
				require.Equal(t, key, IdentityKey(id))
			}
		}
	})
}
