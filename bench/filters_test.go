// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// TestFilters measures a tiny mesh with filters and without: what is there is what
// the rules say, or there would be no report, and the figures agree with each other.
// It says nothing about speed.
func TestFilters(t *testing.T) {
	needBPF(t)
	t.Parallel()
	kubernetes := kubeapi.Require(t)
	mesh := Mesh{Clusters: 3, Endpoints: 60, Nodes: 3, Identities: 6, Services: 4, Seed: 2}
	report, err := SyncFilters(t.Context(), FiltersConfig{
		Config: Config{
			Mesh: mesh, CacheEtcds: 1, Rounds: 1, Timeout: 2 * time.Minute, Program: os.Args[0], Log: hivetest.Logger(t),
		},
		Filters: Filters{OptIn: 0.5, Regional: 0.67, Regions: 2},
		Rate:    40, Duration: time.Second, Idle: time.Second, Drain: 2 * time.Minute, KubernetesProgram: kubernetes,
	})
	require.NoError(t, err)
	require.Len(t, report.Rounds, 2)
	off, on := report.Median()
	// Of 6 workloads of 10 pods 3 opt in, 2 of these in their region alone, which is
	// the consumer's for the first and the third cluster.
	require.Equal(t, map[string]KeyCounts{
		partExporterEtcd: {Nodes: 3, Identities: 6, Endpoints: 60, Services: 4},
		"sources":        {Nodes: 6, Identities: 12, Endpoints: 120, Services: 8},
		partEtcd:         {Nodes: 9, Identities: 18, Endpoints: 180, Services: 12},
	}, off.Keys)
	require.Equal(t, map[string]KeyCounts{
		partExporterEtcd: {Nodes: 3, Identities: 3, Endpoints: 30, Services: 4, OnDemandEndpoints: 30, OnDemandIdentities: 3},
		"sources":        {Nodes: 6, Identities: 6, Endpoints: 60, Services: 8},
		partEtcd:         {Nodes: 9, Identities: 9, Endpoints: 70, Services: 12},
	}, on.Keys)
	for _, f := range []FilterFigures{off, on} {
		require.Equal(t, 40, f.Changes.Sent)
		require.Len(t, f.Phases, 5)
		require.GreaterOrEqual(t, f.MapEntries, f.Keys[partEtcd].Endpoints+f.Keys[partEtcd].Nodes)
		require.Positive(t, f.AgentReadySeconds)
		require.Positive(t, f.ReadySeconds)
		require.Positive(t, f.ExporterReadySeconds)
		for _, part := range filterParts {
			require.Positive(t, f.part(phaseReplace, part).CPUSeconds, part)
			require.Positive(t, f.part(phaseIdle, part).EndRSSBytes, part)
		}
		for _, etcd := range filterEtcds {
			require.Positive(t, f.watchEvents(phaseReplace, etcd), etcd)
		}
	}
	require.Equal(t, 40, off.Changes.Pushed)
	require.Less(t, on.Changes.Pushed, 40)
	require.Greater(t, off.watchEvents(phaseReplace, partEtcd), on.watchEvents(phaseReplace, partEtcd))

	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read struct {
		Parameters struct {
			Clusters int     `json:"clusters"`
			OptIn    float64 `json:"opt_in"`
		} `json:"parameters"`
		Off, On   FilterFigures
		Reduction map[string]float64 `json:"reduction"`
	}
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Equal(t, 3, read.Parameters.Clusters)
	require.Equal(t, 0.5, read.Parameters.OptIn)
	require.Equal(t, on.Keys, read.On.Keys)
	for _, name := range []string{"endpoint_keys", "keys", "watch_events", "agent_rss", "agent_bootstrap_seconds", "kvstoremesh_cpu"} {
		require.Contains(t, read.Reduction, name)
	}
	require.InDelta(t, 1-70.0/180, read.Reduction["endpoint_keys"], 1e-9)
	require.InDelta(t, 1-100.0/219, read.Reduction["keys"], 1e-9)
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `etcd: endpoints +180 +70 +61.1 %`, text.String())
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 9)
	for _, figure := range section.Figures {
		require.Contains(t, string(figure.SVG), "<path", figure.Title)
	}
}

// TestFilteredMesh counts what the rules leave of a mesh of the default's shape.
func TestFilteredMesh(t *testing.T) {
	config := FiltersConfig{
		Config: Config{Mesh: Mesh{Clusters: 10, Endpoints: 400, Nodes: 4, Identities: 40, Services: 2, Seed: 7}}, Filters: Filters{OptIn: 0.125, Regional: 0.8, Regions: 5},
		Rate: 10, Duration: time.Second, Idle: time.Second,
	}
	require.NoError(t, config.validate())
	mesh := config.mesh(FiltersOn)
	pods := newReplacements(mesh)
	for n := range mesh.Clusters {
		c, counts := mesh.Cluster(n), map[string]int{}
		require.NoError(t, c.Entries(wire.Endpoints, func(key string, value []byte) error {
			e, err := wire.DecodeEndpoint(key, value, func(b []byte) string { return string(b) })
			if counts["pushed"]++; err == nil && c.crosses(&e) {
				counts["crosses"]++
			}
			return err
		}))
		require.NoError(t, c.Entries(wire.Identities, func(string, []byte) error { counts["identities"]++; return nil }))
		require.NoError(t, c.Entries(wire.Nodes, func(string, []byte) error { counts["nodes"]++; return nil }))
		crosses := 10 // a fifth of what opts in is global
		if n%5 == 0 {
			crosses = 50
		}
		require.Equal(t, map[string]int{"pushed": 50, "crosses": crosses, "identities": 5, "nodes": 4}, counts, c.Name)
		source, err := pods.atSource(c)
		require.NoError(t, err)
		require.Equal(t, 350, source[wire.OnDemandEndpointPrefix].entries)
		require.Equal(t, 35, source[wire.OnDemandIdentityPrefix].entries)
	}
	before, err := pods.inMap()
	require.NoError(t, err)
	require.Len(t, before, 2*50+8*10+10*4)
	// All pods are replaced: the fates stay, the addresses don't.
	for n := range mesh.Clusters {
		for i := range mesh.Endpoints {
			pods.gone[objectOf{n, i}] = struct{}{}
		}
	}
	after, err := pods.inMap()
	require.NoError(t, err)
	require.Len(t, after, len(before))
	common := 0
	for key := range after {
		if _, both := before[key]; both {
			common++
		}
	}
	require.Equal(t, 10*4, common, "the nodes")

	all := newReplacements(config.mesh(FiltersOff))
	source, err := all.atSource(all.mesh.Cluster(0))
	require.NoError(t, err)
	require.Equal(t, 400, source[wire.StatePrefix(wire.Endpoints, "source-001")].entries)
	require.NotContains(t, source, wire.OnDemandEndpointPrefix)
	require.Equal(t, filter.Pushed, all.mesh.Cluster(1).fate(wire.Endpoints, 3))
	require.Empty(t, all.mesh.Cluster(1).Config().Region)
	require.Equal(t, "region-2", mesh.Cluster(6).Config().Region)
}

func TestFiltersAreRefused(t *testing.T) {
	config := FiltersConfig{
		Config: Config{Mesh: DefaultFiltersMesh, Program: "/nonexistent/waggle"}, Filters: Filters{OptIn: 0.05, Regional: 0.8, Regions: 5},
		Rate: 500, Duration: 20 * time.Second, Idle: time.Second,
	}
	require.NoError(t, config.validate())
	require.Equal(t, 250_000, config.Mesh.Keys())
	for want, change := range map[string]func(*FiltersConfig){
		"above 0 %":                     func(c *FiltersConfig) { c.Filters.OptIn = 0 },
		"0.1 % of 200 workloads is":     func(c *FiltersConfig) { c.Filters.OptIn = 0.001 },
		"there must be a region":        func(c *FiltersConfig) { c.Filters.Regions = 0 },
		"rate must be positive":         func(c *FiltersConfig) { c.Rate = 0 },
		"each of which is replaced onc": func(c *FiltersConfig) { c.Rate = 20_000 },
		"0 clusters: must be between":   func(c *FiltersConfig) { c.Mesh.Clusters = 0 },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
	_, err := SyncFilters(t.Context(), config)
	require.ErrorContains(t, err, "make bin/kube-apiserver")
}
