// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// TestChurn sends few events over several clusters: all arrive, and the figures
// agree with each other. It says nothing about speed.
func TestChurn(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), upstreamProgram)
	require.NoError(t, os.Symlink(os.Args[0], program))
	report, err := Churn(t.Context(), ChurnConfig{
		Config: Config{
			Mesh: Mesh{Clusters: 2, Endpoints: 30, Nodes: 2, Identities: 3}, Layout: LayoutAuto, Rounds: 1, Timeout: time.Minute,
			Program: os.Args[0], Peers: []string{Upstream}, PeerProgram: program, Log: hivetest.Logger(t),
		},
		Rate: 100, Duration: time.Second, Drain: 30 * time.Second,
	})
	require.NoError(t, err)
	require.Equal(t, []string{Waggle, Upstream}, report.Subjects())
	for _, f := range report.Rounds {
		require.Equal(t, 100, f.Sent)
		require.Equal(t, f.Sent, f.Delivered, "something was lost")
		require.True(t, f.Drained)
		require.LessOrEqual(t, f.Overtaken, f.Delivered)
		require.LessOrEqual(t, f.QueueEnd, f.QueueMax)
		require.Positive(t, f.Commits)
		require.GreaterOrEqual(t, f.CommitEvents, f.Commits)
		require.LessOrEqual(t, f.CommitEvents, f.Sent)
		require.Positive(t, f.Cache.P50)
		require.LessOrEqual(t, f.P50, f.P99)
		require.LessOrEqual(t, f.P99, f.Max)
		require.Positive(t, f.CPUSeconds)
		require.Positive(t, f.EtcdCPUSeconds)
		require.Positive(t, f.AgentCPUSeconds)
	}
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]map[string]any
	_ = json.Unmarshal(raw, &read) // some fields aren't objects
	for _, name := range []string{"p50_ms", "p99_ms", "queue_end", "cpu_seconds", "delivered"} {
		require.Contains(t, read[Waggle], name)
		require.Contains(t, read[Upstream], name)
	}
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `delivered +100 +100 +100`, text.String())
}

func TestChurnIsRefused(t *testing.T) {
	config := ChurnConfig{Config: Config{Mesh: DefaultMesh}, Rate: 10, Duration: time.Second}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*ChurnConfig){
		"rate must be positive":   func(c *ChurnConfig) { c.Rate = 0 },
		"at least a second":       func(c *ChurnConfig) { c.Duration = 0 },
		"more than the 2500":      func(c *ChurnConfig) { c.Rate = 1e6 },
		"0 clusters: must be bet": func(c *ChurnConfig) { c.Mesh = Mesh{} },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
}
