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
)

// TestScale measures a tiny mesh, and checks that the figures agree with each
// other and that nothing was lost. It says nothing about speed.
func TestScale(t *testing.T) {
	needBPF(t)
	mesh, err := ScaleMesh(3, 30, 300, 5, 1)
	require.NoError(t, err)
	report, err := Scale(t.Context(), ScaleConfig{
		Config: Config{Mesh: mesh, CacheEtcds: 1, Timeout: time.Minute, Program: os.Args[0], Log: hivetest.Logger(t)},
		Growth: []int{2, 3}, Idle: time.Second, NodeRate: 40, EndpointRates: []float64{20, 200}, Duration: time.Second, Drain: 30 * time.Second,
	})
	require.NoError(t, err)
	require.Len(t, report.Sizes, 2)
	for i, size := range report.Sizes {
		part := mesh.first(i + 1)
		require.Equal(t, i+2, size.Clusters)
		require.Equal(t, part.Keys(), size.Keys)
		require.Positive(t, size.ReadySeconds)
		require.Positive(t, size.AgentReadySeconds)
		require.Positive(t, size.MapBytes)
		require.GreaterOrEqual(t, size.MapEntries, part.Clusters*(part.Endpoints+part.Nodes))
		require.LessOrEqual(t, size.MapEntries, size.MapCapacity)
		for _, phase := range size.Phases {
			require.Positive(t, phase.Seconds)
			for name, f := range phase.Parts {
				require.GreaterOrEqual(t, f.PeakRSSBytes, f.EndAnonBytes, "%s in %s", name, phase.Name)
				require.GreaterOrEqual(t, f.CoresMax, f.Cores, "%s in %s", name, phase.Name)
			}
		}
	}
	require.Len(t, report.Sizes[0].Phases, 2)
	require.Len(t, report.Whole().Phases, 5)
	var sent []int
	for _, phase := range report.Whole().Phases[3:] {
		for _, f := range []*ChangeFigures{phase.Endpoints, phase.Nodes} {
			require.Equal(t, f.Sent, f.Delivered, "something was lost")
			require.LessOrEqual(t, f.QueueEnd, f.QueueMax)
			require.LessOrEqual(t, f.P50, f.P99)
			require.Positive(t, f.P50)
			sent = append(sent, f.Sent)
		}
		for _, part := range scaleParts {
			require.Positive(t, phase.Parts[part].CPUSeconds)
		}
	}
	require.Equal(t, []int{20, 40, 200, 40}, sent)

	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read struct {
		Waggle ScaleFigures       `json:"waggle"`
		Sizes  []ScaleFigures     `json:"sizes"`
		Growth map[string]Growth  `json:"growth"`
		Idle   map[string]float64 `json:"idle_cores_per_cluster"`
	}
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Equal(t, mesh.Keys(), read.Waggle.Keys)
	require.Len(t, read.Sizes, 2)
	require.Contains(t, read.Growth, "kvstoremesh_cpu_seconds")
	require.Len(t, read.Idle, len(scaleParts))
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `churn-200 +200 endpoints/s`, text.String())
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 6)
	for _, figure := range section.Figures {
		require.Contains(t, string(figure.SVG), "<path", figure.Title)
	}
}

func TestScaleIsRefused(t *testing.T) {
	mesh, err := ScaleMesh(511, 50_000, 500_000, 100, 1)
	require.NoError(t, err)
	require.Equal(t, uint32(511), mesh.MaxConnectedClusters())
	require.Equal(t, mesh.Cluster(3).endpointObject(7), mesh.first(10).Cluster(3).endpointObject(7))
	require.Equal(t, mesh.Cluster(3).Config(), mesh.first(10).Cluster(3).Config())
	require.GreaterOrEqual(t, mesh.Clusters*mesh.Endpoints, 500_000)
	require.Equal(t, 1<<20, mapCapacity(mesh))
	config := ScaleConfig{Config: Config{Mesh: mesh}, Idle: time.Second, Duration: time.Second, NodeRate: 50, EndpointRates: []float64{100}}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*ScaleConfig){
		"rate must be positive":  func(c *ScaleConfig) { c.EndpointRates = []float64{0} },
		"at least a second":      func(c *ScaleConfig) { c.Idle = 0 },
		"more than the 99 nodes": func(c *ScaleConfig) { c.NodeRate = 1e6 },
		"growth over 512":        func(c *ScaleConfig) { c.Growth = []int{512} },
		"need two":               func(c *ScaleConfig) { c.Mesh.Identities = 1 },
		"no other address":       func(c *ScaleConfig) { c.Mesh.Nodes = 1200 },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
	_, err = ScaleMesh(1, 1, 1, 1, 1)
	require.ErrorContains(t, err, "there must be two")
}

func TestGrowth(t *testing.T) {
	keys := []float64{1000, 2000, 4000}
	line := growthOf(keys, []float64{12, 22, 42})
	require.InDelta(t, 2, line.Fixed, 1e-9)
	require.InDelta(t, 0.01, line.PerKey, 1e-12)
	require.InDelta(t, 0, line.Deviation, 1e-9)
	require.Greater(t, growthOf(keys, []float64{1, 4, 16}).Deviation, 0.2, "a square isn't a line")
	for _, costs := range [][]float64{nil, {1}, {0, 1}} {
		require.Zero(t, growthOf(keys, costs))
	}
	require.Zero(t, growthOf([]float64{5, 5}, []float64{1, 2}))
}

func TestBusiest(t *testing.T) {
	var samples []sample
	cpu := time.Duration(0)
	for i := range 50 { // ten seconds, of which the fifth is busy
		at := time.Duration(i) * scaleSamples
		samples = append(samples, sample{at: at, cpu: cpu})
		if at >= 4*time.Second && at < 5*time.Second {
			cpu += scaleSamples
		}
	}
	require.InDelta(t, 1, busiest(samples, 0, 10*time.Second), 1e-9)
	require.InDelta(t, 0.6, busiest(samples, 0, 4600*time.Millisecond), 1e-9)
	require.Zero(t, busiest(samples, 6*time.Second, 10*time.Second))
	require.Zero(t, busiest(samples, 0, 500*time.Millisecond))
	require.Zero(t, busiest(nil, 0, time.Second))
}
