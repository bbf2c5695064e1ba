// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestEntriesAreOfTheSchema decodes and checks everything as a consumer would.
func TestEntriesAreOfTheSchema(t *testing.T) {
	for name, mesh := range map[string]Mesh{
		"usual":                          {Clusters: 3, Endpoints: 250, Nodes: 10, Identities: 20, Services: 5},
		"more services than identities":  {Clusters: 2, Endpoints: 10, Nodes: 3, Identities: 4, Services: 30},
		"more identities than names":     {Clusters: 1, Endpoints: 0, Nodes: 1, Identities: 500, Services: 1},
		"a mesh of more than 255":        {Clusters: 300, Endpoints: 2, Nodes: 2, Identities: 1, Services: 1},
		"more nodes than endpoints":      {Clusters: 2, Endpoints: 5, Nodes: 50, Identities: 3},
		"more endpoints than one a node": {Clusters: 1, Endpoints: 7, Nodes: 3, Identities: 2},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, mesh.Validate())
			addresses := map[netip.Addr]bool{}
			for i := range mesh.Clusters {
				checkCluster(t, mesh, mesh.Cluster(i), addresses)
			}
			require.Len(t, addresses, mesh.Clusters*mesh.Endpoints, "an address was given twice")
		})
	}
}

func checkCluster(t *testing.T, mesh Mesh, c Cluster, addresses map[netip.Addr]bool) {
	validator := wire.NewValidator(c.Name, c.ID, mesh.MaxConnectedClusters())
	identities, nodes := map[uint32]bool{}, map[netip.Addr]netip.Prefix{}
	pods := map[netip.Addr]bool{}
	check := map[wire.Resource]func(key string, value []byte) error{
		wire.Identities: func(key string, value []byte) error {
			id, err := wire.DecodeIdentity(key, value)
			require.NoError(t, err)
			identities[id.ID] = true
			return validator.CheckIdentity(&id)
		},
		wire.Nodes: func(key string, value []byte) error {
			n, err := wire.DecodeNode(key, value)
			require.NoError(t, err)
			nodes[n.Addresses[0].IP] = n.PodCIDRs4[0]
			return validator.CheckNode(&n)
		},
		wire.Endpoints: func(key string, value []byte) error {
			e, err := wire.DecodeEndpoint(key, value, nil)
			require.NoError(t, err)
			require.True(t, identities[e.Identity], "unknown identity")
			require.True(t, nodes[e.HostIP].Contains(e.Prefix.Addr()), "%s isn't of its node's pod CIDR", e.Prefix)
			pods[e.Prefix.Addr()], addresses[e.Prefix.Addr()] = true, true
			return validator.CheckEndpoint(key, &e)
		},
		wire.Services: func(key string, value []byte) error {
			s, err := wire.DecodeService(key, value)
			require.NoError(t, err)
			require.LessOrEqual(t, len(s.Backends), maxBackends)
			for backend := range s.Backends {
				require.True(t, pods[netip.MustParseAddr(backend)], "%s is no pod", backend)
			}
			return validator.CheckService(s)
		},
	}
	for _, r := range wire.Resources {
		keys := map[string]bool{}
		require.NoError(t, c.Entries(r, func(key string, value []byte) error {
			require.NoError(t, validator.CheckKey(r, key))
			require.False(t, keys[key], "%s twice", key)
			keys[key] = true
			return check[r](key, value)
		}))
		require.Len(t, keys, mesh.generated()[r])
	}
	require.NoError(t, wire.ValidateClusterConfig(
		wire.ClusterInfo{ID: localID, Name: localName, MaxConnectedClusters: mesh.MaxConnectedClusters()}, c.Config()))
}

// TestEntriesHaveUsualSizes keeps the content comparable to a real mesh's.
func TestEntriesHaveUsualSizes(t *testing.T) {
	var bytes, count int
	require.NoError(t, DefaultMesh.Cluster(0).Entries(wire.Endpoints, func(_ string, value []byte) error {
		bytes, count = bytes+len(value), count+1
		return nil
	}))
	require.InDelta(t, 190, bytes/count, 30)
}

func TestDigestIsOfTheSeed(t *testing.T) {
	of := func(seed uint64) map[string]digest {
		m := Mesh{Clusters: 2, Endpoints: 20, Nodes: 2, Identities: 2, Services: 2, Seed: seed}
		out, err := expected(m)
		require.NoError(t, err)
		return out
	}
	require.Equal(t, of(1), of(1))
	require.NotEqual(t, of(1), of(2))
}

func TestValidate(t *testing.T) {
	for _, m := range []Mesh{
		{},
		{Clusters: 511, Nodes: 1, Identities: 1},
		{Clusters: 1, Identities: 1},
		{Clusters: 1, Nodes: 1, Identities: 65536},
		{Clusters: 500, Nodes: 1, Identities: 32768},
		{Clusters: 500, Nodes: 10, Identities: 1, Endpoints: 50_000},
		{Clusters: 500, Nodes: 50_000, Identities: 1},
		{Clusters: 1, Nodes: 1, Identities: 1, Services: 70_000},
	} {
		require.Error(t, m.Validate(), "%+v", m)
	}
	// The sizes that the project is built for.
	for _, m := range []Mesh{
		DefaultMesh,
		{Clusters: 200, Endpoints: 2500, Nodes: 100, Identities: 100, Services: 20},
		{Clusters: 10, Endpoints: 50_000, Nodes: 1000, Identities: 1000, Services: 100},
		{Clusters: 510, Endpoints: 1000, Nodes: 100, Identities: 100, Services: 20},
	} {
		require.NoError(t, m.Validate(), "%+v", m)
	}
}
