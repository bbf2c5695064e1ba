// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestChanged compares a mesh with its Changed: they differ by one key in a
// hundred, and by what differences says.
func TestChanged(t *testing.T) {
	for name, mesh := range map[string]Mesh{
		"usual":           {Clusters: 3, Endpoints: 2500, Nodes: 100, Identities: 100, Services: 20},
		"few endpoints":   {Clusters: 2, Endpoints: 2, Nodes: 1, Identities: 1},
		"full nodes":      {Clusters: 2, Endpoints: 1300, Nodes: 10, Identities: 9},
		"not a multiple":  {Clusters: 1, Endpoints: 1001, Nodes: 7, Identities: 3},
		"few large nodes": {Clusters: 1, Endpoints: 5000, Nodes: 2, Identities: 3},
	} {
		t.Run(name, func(t *testing.T) {
			addresses := map[netip.Prefix]bool{}
			for i := range mesh.Clusters {
				before, after := entriesOf(t, mesh.Cluster(i)), entriesOf(t, mesh.Changed().Cluster(i))
				changes, err := mesh.Cluster(i).differences()
				require.NoError(t, err)
				require.Len(t, changes, min(max(1, mesh.KeysPerCluster()/100), mesh.Endpoints))
				for _, change := range changes {
					if change.deleted {
						require.Contains(t, before, change.key)
						delete(before, change.key)
						continue
					}
					require.NotEqual(t, string(change.value), before[change.key])
					before[change.key] = string(change.value)
				}
				require.Equal(t, before, after)
				for key := range after {
					prefix, err := wire.ParseEndpointKey(key)
					require.NoError(t, err)
					require.False(t, addresses[prefix], "an address was given twice")
					addresses[prefix] = true
				}
			}
		})
	}
}

func entriesOf(t *testing.T, c Cluster) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, c.Entries(wire.Endpoints, func(key string, value []byte) error {
		out[key] = string(value)
		return nil
	}))
	return out
}
