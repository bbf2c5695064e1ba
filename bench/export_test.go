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

	"github.com/waggle-mesh/waggle/testing/kubeapi"
)

// TestExport exports few endpoints of a real API server, from both kinds of
// objects: all arrive as they should be, and the figures agree with each other.
// It says nothing about speed.
func TestExport(t *testing.T) {
	t.Parallel()
	kubernetes := kubeapi.Require(t)
	peer := filepath.Join(t.TempDir(), upstreamProgram)
	require.NoError(t, os.Symlink(os.Args[0], peer))
	mesh := Mesh{Clusters: 1, Endpoints: 130, Nodes: 3, Identities: 5}
	report, err := Export(t.Context(), ExportConfig{
		Config: Config{
			Mesh: mesh, Rounds: 1, Timeout: 2 * time.Minute, Program: os.Args[0],
			Peers: []string{Upstream}, PeerProgram: peer, Log: hivetest.Logger(t),
		},
		Modes: ExportModes, Rate: 30, Duration: time.Second, Drain: time.Minute, KubernetesProgram: kubernetes,
	})
	require.NoError(t, err)
	require.Equal(t, []string{Waggle, Upstream}, report.Subjects())
	require.Equal(t, ExportModes, report.Modes())
	require.Len(t, report.Rounds, 4)
	for _, f := range report.Rounds {
		require.Equal(t, mesh.Keys(), f.Keys, "a round begins with what the first one did")
		require.Equal(t, 30, f.Sent)
		require.Equal(t, f.Sent, f.Delivered, "something was lost")
		require.True(t, f.Drained)
		require.LessOrEqual(t, f.QueueEnd, f.QueueMax)
		require.Positive(t, f.Commits)
		require.GreaterOrEqual(t, f.CommitEvents, f.Commits)
		require.Positive(t, f.Writes)
		require.LessOrEqual(t, f.Writes, f.Sent)
		if f.Mode == CEP {
			require.Equal(t, f.Sent, f.Writes)
		}
		require.Positive(t, f.ReadySeconds)
		require.Positive(t, f.ReadyCPUSeconds)
		require.Positive(t, f.ReadyEtcdCPUSeconds)
		require.Positive(t, f.CPUSeconds)
		require.Positive(t, f.EtcdCPUSeconds)
		require.Positive(t, f.KubernetesCPUSeconds)
		require.GreaterOrEqual(t, f.PeakRSSBytes, f.ReadyPeakRSSBytes)
		require.Positive(t, f.Accepted.P50)
		require.Positive(t, f.Own.P50)
		require.LessOrEqual(t, f.P50, f.P99)
		require.LessOrEqual(t, f.P99, f.Max)
	}
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]map[string]any
	_ = json.Unmarshal(raw, &read) // some fields aren't objects
	for _, mode := range ExportModes {
		require.Contains(t, read[mode], Waggle)
		require.Contains(t, read[mode], Upstream)
		require.Contains(t, read[mode]["ratio"], "own_p99")
	}
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Regexp(t, `delivered +30 +30 +30`, text.String())
	section, err := report.Section()
	require.NoError(t, err)
	require.Len(t, section.Figures, 6)
}

func TestExportIsRefused(t *testing.T) {
	config := ExportConfig{
		Config: Config{Mesh: Mesh{Clusters: 1, Endpoints: 10, Nodes: 1, Identities: 1}, Program: "/nonexistent/waggle"},
		Modes:  []string{CES}, Rate: 10, Duration: time.Second,
	}
	require.NoError(t, config.validate())
	for want, change := range map[string]func(*ExportConfig){
		"one cluster, and no services": func(c *ExportConfig) { c.Mesh.Clusters = 2 },
		"rate must be positive":        func(c *ExportConfig) { c.Rate = 0 },
		"there must be a mode":         func(c *ExportConfig) { c.Modes = nil },
		`mode "pods": must be one`:     func(c *ExportConfig) { c.Modes = []string{"pods"} },
		"0 identities: must be bet":    func(c *ExportConfig) { c.Mesh.Identities = 0 },
	} {
		refused := config
		change(&refused)
		require.ErrorContains(t, refused.validate(), want)
	}
	_, err := Export(t.Context(), config)
	require.ErrorContains(t, err, "make bin/kube-apiserver")
	config.KubernetesProgram, config.Peers = os.Args[0], []string{"downstream"}
	_, err = Export(t.Context(), config)
	require.ErrorContains(t, err, `peer "downstream": must be one`)
}
