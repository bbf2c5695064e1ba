// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// TestSuite runs everything once, small, and makes each kind of report of it.
func TestSuite(t *testing.T) {
	config := SuiteConfig{
		Config: Config{
			Mesh: Mesh{Clusters: 2, Endpoints: 20, Nodes: 2, Identities: 2}, Layout: LayoutAuto, CacheEtcds: 1, Rounds: 1,
			Timeout: time.Minute, Program: os.Args[0], Log: hivetest.Logger(t),
		},
		Rates: []float64{20}, Duration: time.Second, Entries: 50, Agents: 2, KVStoreMeshes: 2, Exported: 20, InClusterAgents: 2, ScaleClusters: 2, FilterClusters: 5,
	}
	var done, of []int
	config.Steps = func(d, o int) { done, of = append(done, d), append(of, o) }
	suite, err := Suite(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, []string{"kvstoremesh-1", "kvstoremesh-2", "churn-20"}, suite.Names[:3])
	require.Equal(t, 10, len(suite.Names)+len(suite.Skipped))
	require.Subset(t, suite.Names, []string{"rollout", "fanout"})
	require.True(t, slices.IsSorted(done), "%d", done)
	require.Equal(t, []int{1000}, slices.Compact(of))
	require.LessOrEqual(t, done[len(done)-1], 1000)
	require.Len(t, suite.Growth, 2)
	require.Less(t, suite.Growth[0].Mesh.Keys(), suite.Growth[1].Mesh.Keys())

	raw, err := json.Marshal(suite)
	require.NoError(t, err)
	var read map[string]map[string]any
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Contains(t, read["churn-20"], Waggle)
	var text strings.Builder
	require.NoError(t, suite.WriteText(&text))
	require.Contains(t, text.String(), "rate: 20 events/s")

	sections, err := suite.Sections()
	require.NoError(t, err)
	require.Len(t, sections, 1+len(suite.Names))
	for i, figures := range map[int]int{0: 3, 1: 2, 2: 2, 3: 3} {
		require.Len(t, sections[i].Figures, figures, sections[i].Title)
		for _, f := range sections[i].Figures {
			require.Contains(t, string(f.SVG), Waggle, "%s of %s has no line of ours", f.Title, sections[i].Title)
		}
	}
}
