// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAssignIDs(t *testing.T) {
	clusters := []Cluster{
		{Name: "c", MaxConnectedClusters: 255},
		{Name: "b", ID: 1, MaxConnectedClusters: 255},
		{Name: "a", MaxConnectedClusters: 255},
	}
	require.NoError(t, assignIDs(clusters))
	require.Equal(t, []string{"b", "c", "a"}, []string{clusters[0].Name, clusters[1].Name, clusters[2].Name})

	for name, clusters := range map[string][]Cluster{
		"both have ID 7":    {{Name: "a", ID: 7}, {Name: "b", ID: 7}},
		"both named":        {{Name: "a", ID: 7}, {Name: "a", ID: 8}},
		"between 1 and 255": {{Name: "a", ID: 256, MaxConnectedClusters: 255}},
		"--cluster-name":    {{Name: "A_b", ID: 1, MaxConnectedClusters: 255}},
	} {
		require.ErrorContains(t, assignIDs(clusters), name)
	}
}
