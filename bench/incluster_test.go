// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// inClusterOf measures few agents of a small cluster.
func inClusterOf(t *testing.T, endpointSlices bool, bare int, waits ...time.Duration) *InClusterReport {
	t.Helper()
	kubernetes := kubeapi.Require(t)
	report, err := InCluster(t.Context(), InClusterConfig{
		Config: Config{Rounds: 1, Timeout: 3 * time.Minute, Program: os.Args[0], Log: hivetest.Logger(t)},
		Agents: 3 + bare, Bare: bare, Pods: 120, Rate: 40, ServicesRate: 10, Duration: 2 * time.Second, Drain: time.Minute,
		Wait: 20 * time.Millisecond, Waits: waits, EndpointSlices: endpointSlices, KubernetesProgram: kubernetes,
	})
	require.NoError(t, err) // it says whether each agent has what was written
	return report
}

// TestInCluster measures all modes: all writes arrive at all agents, and the
// figures agree with each other. It says nothing about cost.
func TestInCluster(t *testing.T) {
	t.Parallel()
	report := inClusterOf(t, false, 0, 0)
	require.Equal(t, inClusterModes, report.Modes())
	require.Len(t, report.Rounds, 2+2)
	watches := map[string]int{Idle: 0, CRD: 3, Cache: 1}
	for i := range report.Rounds {
		f := &report.Rounds[i]
		require.GreaterOrEqual(t, f.Writes, 2*(40+10))
		require.Equal(t, f.Mode != Idle, f.Delivered == 3*f.Writes)
		parts := []string{apiServerPart, apiServerEtcdPart}
		if f.Mode == Cache {
			parts = append(parts, cachePart, cacheEtcdPart)
		}
		require.Len(t, f.CPUSeconds, len(parts))
		for _, part := range parts {
			require.Positive(t, f.CPUSeconds[part])
			require.Positive(t, f.RSSBytes[part])
			require.NotEmpty(t, f.samples[part])
		}
		require.LessOrEqual(t, f.P50, f.P99)
		require.LessOrEqual(t, f.P99, f.Max)
		require.Equal(t, f.Mode != Idle, f.AgentsCPUSeconds > 0)
		require.Positive(t, f.Busy)
		require.LessOrEqual(t, f.Busy, 1.0)
		require.Positive(t, f.Requests.P99)
		for _, resource := range []string{"ciliumendpoints", "ciliumidentities", "ciliumnodes"} {
			require.Equal(t, watches[f.Mode], f.Watches[resource])
		}
		require.Equal(t, f.Mode != Idle, f.WatchEventsPerMin["ciliumendpoints"] > 0)
	}
	reduction := report.Reduction()
	require.Greater(t, reduction.WatchConnections, 0.0)
	require.Greater(t, reduction.WatchEvents, 0.0)
	var waits []float64
	for _, p := range report.Curve() {
		waits = append(waits, p.WaitMS)
	}
	require.Equal(t, []float64{0, 20}, waits)
	testInClusterReport(t, report)
}

// TestInClusterEndpointSlices is the same with slices, in which writes of pods
// are combined, and with bare agents beside the others.
func TestInClusterEndpointSlices(t *testing.T) {
	t.Parallel()
	report := inClusterOf(t, true, 2)
	for mode, watches := range map[string]int{CRD: 3 + 2, Cache: 1} {
		f := report.Median(mode)
		require.Equal(t, 3*f.Writes, f.Delivered)
		require.Equal(t, watches, f.Watches["ciliumendpointslices"])
		require.NotContains(t, f.Watches, "ciliumendpoints")
	}
}

// inClusterShape is what other programs read, by the field that it is in.
var inClusterShape = map[string][]string{
	Idle: {"apiserver_cpu", "apiserver_etcd_cpu", "apiserver_rss", "total_cpu", "watch_connections", "watch_events_per_min"},
	CRD: {"apiserver_cpu", "apiserver_etcd_cpu", "apiserver_rss", "max_ms", "p50_ms", "p99_ms", "total_cpu",
		"watch_connections", "watch_events_per_min"},
	Cache: {"apiserver_cpu", "apiserver_etcd_cpu", "apiserver_rss", "cache_cpu", "cache_etcd_cpu", "cache_etcd_rss", "cache_rss",
		"max_ms", "p50_ms", "p99_ms", "total_cpu", "watch_connections", "watch_events_per_min"},
	"reduction": {"apiserver_cpu", "apiserver_over_idle", "distribution_cpu", "watch_connections", "watch_events"},
}

func testInClusterReport(t *testing.T, report *InClusterReport) {
	t.Helper()
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]any
	require.NoError(t, json.Unmarshal(raw, &read))
	for field, names := range inClusterShape {
		require.Equal(t, names, slices.Sorted(maps.Keys(read[field].(map[string]any))), field)
	}
	of := func(mode, name string) float64 { return read[mode].(map[string]any)[name].(float64) }
	require.InDelta(t, of(Cache, "apiserver_cpu")+of(Cache, "apiserver_etcd_cpu")+of(Cache, "cache_cpu")+of(Cache, "cache_etcd_cpu"),
		of(Cache, "total_cpu"), 1e-9)
	require.InDelta(t, of(Cache, "apiserver_cpu")/of(Idle, "apiserver_cpu"), of("reduction", "apiserver_over_idle"), 1e-9)
	require.InDelta(t, 1-(of(Cache, "total_cpu")-of(Idle, "total_cpu"))/(of(CRD, "total_cpu")-of(Idle, "total_cpu")),
		of("reduction", "distribution_cpu"), 1e-9)
	require.InDelta(t, 1-of(Cache, "watch_events_per_min")/of(CRD, "watch_events_per_min"), of("reduction", "watch_events"), 1e-9)
	round := read["rounds"].([]any)[1].(map[string]any)
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "apiserver_request_duration_seconds",
		"apiserver_longrunning_requests", "apiserver_watch_events_total_per_min"} {
		require.NotEmpty(t, round[name], name)
	}

	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Contains(t, text.String(), "p50 from write to row, all agents")
	require.Contains(t, text.String(), "apiserver_longrunning_requests: ")
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 5)
}

func TestInClusterIsRefused(t *testing.T) {
	config := InClusterConfig{Agents: 1, Pods: 100, Rate: 10, Duration: time.Second}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*InClusterConfig){
		"at least one agent":         func(c *InClusterConfig) { c.Agents = 0 },
		"at least one must have":     func(c *InClusterConfig) { c.Bare = 1 },
		"files open (ulimit -Hn)":    func(c *InClusterConfig) { c.Agents = 1 << 40 },
		"rate must be positive":      func(c *InClusterConfig) { c.Rate = 0 },
		"that of services not":       func(c *InClusterConfig) { c.ServicesRate = -1 },
		"there must be at least 200": func(c *InClusterConfig) { c.Rate = 100 },
		"named twice":                func(c *InClusterConfig) { c.Waits = []time.Duration{time.Second, time.Second} },
		"can't be negative":          func(c *InClusterConfig) { c.Waits = []time.Duration{-time.Second} },
		"duration at least a second": func(c *InClusterConfig) { c.Duration = time.Millisecond },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
	config.Program = "/nonexistent/waggle"
	_, err := InCluster(t.Context(), config)
	require.ErrorContains(t, err, "make bin/kube-apiserver")
}
