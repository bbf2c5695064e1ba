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
func inClusterOf(t *testing.T, endpointSlices bool) *InClusterReport {
	t.Helper()
	kubernetes, err := kubeapi.Build(t.Context())
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("building kube-apiserver: %v", err)
		}
		t.Skipf("no kube-apiserver to read from, building it failed: %v", err)
	}
	report, err := InCluster(t.Context(), InClusterConfig{
		Config: Config{Rounds: 1, Timeout: 3 * time.Minute, Program: os.Args[0], Log: hivetest.Logger(t)},
		Agents: 3, Pods: 120, Rate: 40, ServicesRate: 10, Duration: 2 * time.Second, Drain: time.Minute,
		EndpointSlices: endpointSlices, KubernetesProgram: kubernetes,
	})
	require.NoError(t, err) // it says whether each agent has what was written
	return report
}

// TestInCluster measures all modes: all writes arrive at all agents, and the
// figures agree with each other. It says nothing about cost.
func TestInCluster(t *testing.T) {
	t.Parallel()
	report := inClusterOf(t, false)
	require.Equal(t, []string{Idle, CRD}, report.Modes())
	for _, f := range report.Rounds {
		require.GreaterOrEqual(t, f.Writes, 2*(40+10))
		require.Equal(t, f.Mode != Idle, f.Delivered == 3*f.Writes)
		require.Positive(t, f.APIServerCPU)
		require.Positive(t, f.APIServerRSS)
		require.Positive(t, f.APIServerEtcdCPU)
		require.GreaterOrEqual(t, f.TotalCPU, f.APIServerCPU+f.APIServerEtcdCPU)
		require.LessOrEqual(t, f.P50, f.P99)
		require.LessOrEqual(t, f.P99, f.Max)
		require.Equal(t, f.Mode != Idle, f.AgentsCPUSeconds > 0)
		require.Positive(t, f.Busy)
		require.LessOrEqual(t, f.Busy, 1.0)
		require.Positive(t, f.Metrics.Requests.P99)
		require.NotEmpty(t, f.samples[apiServerPart])
		watches := map[string]int{Idle: 0, CRD: 3}[f.Mode]
		for _, resource := range []string{"ciliumendpoints", "ciliumidentities", "ciliumnodes"} {
			require.Equal(t, watches, f.Metrics.Watches[resource])
		}
		require.Equal(t, watches > 0, f.Metrics.WatchEventsPerMin["ciliumendpoints"] > 0)
	}
	idle, crd := report.Median(Idle), report.Median(CRD)
	require.Greater(t, crd.WatchConnections, idle.WatchConnections)
	require.Greater(t, crd.WatchEventsPerMin, idle.WatchEventsPerMin)
	testInClusterReport(t, report)
}

// TestInClusterEndpointSlices is the same with slices, in which writes of pods
// are combined.
func TestInClusterEndpointSlices(t *testing.T) {
	t.Parallel()
	report := inClusterOf(t, true)
	crd := report.Median(CRD)
	require.Equal(t, 3*crd.Writes, crd.Delivered)
	require.Equal(t, 3, crd.Metrics.Watches["ciliumendpointslices"])
	require.NotContains(t, crd.Metrics.Watches, "ciliumendpoints")
}

// inClusterShape are the fields of each mode that other programs read.
var inClusterShape = map[string][]string{
	Idle: {"apiserver_cpu", "apiserver_etcd_cpu", "apiserver_rss", "total_cpu", "watch_connections", "watch_events_per_min"},
	CRD: {"apiserver_cpu", "apiserver_etcd_cpu", "apiserver_rss", "max_ms", "p50_ms", "p99_ms", "total_cpu",
		"watch_connections", "watch_events_per_min"},
}

func testInClusterReport(t *testing.T, report *InClusterReport) {
	t.Helper()
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]any
	require.NoError(t, json.Unmarshal(raw, &read))
	for mode, names := range inClusterShape {
		require.Equal(t, names, slices.Sorted(maps.Keys(read[mode].(map[string]any))), mode)
	}
	round := read["rounds"].([]any)[1].(map[string]any)
	metrics := round["metrics"].(map[string]any)
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "apiserver_request_duration_seconds",
		"apiserver_longrunning_requests", "apiserver_watch_events_total_per_min"} {
		require.NotEmpty(t, metrics[name], name)
	}

	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Contains(t, text.String(), "p50 from write to row, all agents")
	require.Contains(t, text.String(), "apiserver_longrunning_requests: ")
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 3)
}

func TestInClusterIsRefused(t *testing.T) {
	config := InClusterConfig{Agents: 1, Pods: 100, Rate: 10, Duration: time.Second}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*InClusterConfig){
		"at least one agent":         func(c *InClusterConfig) { c.Agents = 0 },
		"files open (ulimit -Hn)":    func(c *InClusterConfig) { c.Agents = 1 << 40 },
		"rate must be positive":      func(c *InClusterConfig) { c.Rate = 0 },
		"that of services not":       func(c *InClusterConfig) { c.ServicesRate = -1 },
		"there must be at least 200": func(c *InClusterConfig) { c.Rate = 100 },
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
