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

// TestFanout tells few events to few agents, with and without a proxy: all
// arrive at all, and the figures agree with each other. It says nothing about cost.
func TestFanout(t *testing.T) {
	t.Parallel()
	report, err := Fanout(t.Context(), FanoutConfig{
		Config: Config{Rounds: 1, Timeout: time.Minute, Program: os.Args[0], Log: hivetest.Logger(t)},
		Agents: 7, Rate: 60, Duration: time.Second, Drain: 30 * time.Second, Commits: []int{1, 6},
		Proxy: true, ProxyProgram: os.Args[0],
	})
	require.NoError(t, err)
	require.Equal(t, []string{Direct, Proxied}, report.Paths())
	require.Equal(t, []int{1, 6}, report.Sizes())
	require.Len(t, report.Rounds, 4)
	for _, f := range report.Rounds {
		require.Equal(t, 60, f.Sent)
		require.Equal(t, 7*60, f.Delivered, "something was lost")
		require.Equal(t, 60/f.CommitSize, f.Commits)
		require.Positive(t, f.Messages)
		require.LessOrEqual(t, f.Messages, 7*f.Commits)
		require.Greater(t, f.BytesPerEvent, 100.0, "an endpoint has more")
		require.Positive(t, f.EtcdCPUSeconds)
		require.Positive(t, f.EtcdCPUPerEvent)
		require.Positive(t, f.ReadersCPUSeconds)
		require.Positive(t, f.EtcdPeakRSSBytes)
		require.Equal(t, f.Path == Proxied, f.ProxyCPUSeconds > 0)
		require.Equal(t, f.Path == Proxied, f.ProxyPeakRSSBytes > 0)
		require.LessOrEqual(t, f.P50, f.P99)
		require.LessOrEqual(t, f.P99, f.Max)
		require.LessOrEqual(t, f.Commit.Max, f.Max)
	}
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read struct {
		Agents        int
		Direct, Proxy map[string]map[string]any
		Ratio         map[string]map[string]float64
		Ratios        map[string]map[string]map[string]Spread
	}
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Equal(t, 7, read.Agents)
	for _, path := range []map[string]map[string]any{read.Direct, read.Proxy} {
		require.Len(t, path, 2)
		for _, name := range []string{"p50_ms", "p99_ms", "delivered", "etcd_cpu_seconds", "etcd_cpu_per_event_us"} {
			require.Contains(t, path["6"], name)
		}
	}
	require.Len(t, read.Ratio, 1)
	require.Positive(t, read.Ratio["6"]["etcd_cpu"])
	require.Positive(t, read.Ratios[Proxied]["6"]["proxy_cpu"].Min)
	require.NotContains(t, read.Ratios[Direct]["6"], "proxy_cpu")

	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Contains(t, text.String(), "proxy, commits of 6 events")
	require.Regexp(t, `one put at a time ÷ these +min +median +max`, text.String())
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 2)
}

func TestFanoutIsRefused(t *testing.T) {
	config := FanoutConfig{Agents: 1, Rate: 10, Duration: time.Second, Commits: []int{1, 5}}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*FanoutConfig){
		"at least one agent":       func(c *FanoutConfig) { c.Agents = 0 },
		"files open (ulimit -Hn)":  func(c *FanoutConfig) { c.Agents = 1 << 40 },
		"rate must be positive":    func(c *FanoutConfig) { c.Rate = 0 },
		"at least one size":        func(c *FanoutConfig) { c.Commits = nil },
		"between 1 and 2500":       func(c *FanoutConfig) { c.Commits = []int{0} },
		"5 events: named twice":    func(c *FanoutConfig) { c.Commits = []int{5, 5} },
		"not one is full within 1": func(c *FanoutConfig) { c.Commits = []int{20} },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
	config.Proxy, config.Program = true, "/nonexistent/waggle"
	_, err := Fanout(t.Context(), config)
	require.ErrorContains(t, err, "make bin/etcd")
}
