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

// TestRollout replaces a source of few KVStoreMeshes, with a peer whose program is
// the test's own: each lists everything again. It says nothing about speed.
func TestRollout(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), rolloutProgram)
	require.NoError(t, os.Symlink(os.Args[0], program))
	report, err := Rollout(t.Context(), RolloutConfig{
		Config: Config{
			Mesh: Mesh{Endpoints: 300, Nodes: 3, Identities: 4, Services: 2}, Rounds: 1, Timeout: time.Minute,
			Program: os.Args[0], Peers: []string{Upstream}, PeerProgram: program, Log: hivetest.Logger(t),
		},
		KVStoreMeshes: 5,
	})
	require.NoError(t, err)
	require.Equal(t, []string{Waggle, Upstream}, report.Subjects())
	for _, f := range report.Rounds {
		require.Positive(t, f.FirstSeconds)
		require.LessOrEqual(t, f.FirstSeconds, f.MedianSeconds)
		require.LessOrEqual(t, f.MedianSeconds, f.Seconds)
		require.GreaterOrEqual(t, f.Connected.Lists, 5*6, "each of five lists six resources")
		require.GreaterOrEqual(t, f.Again.Lists, 5*6, "and again")
		require.Positive(t, f.Again.Peak)
		require.LessOrEqual(t, f.Again.PeakPages, f.Again.Peak)
		require.LessOrEqual(t, f.Again.Peak, 5*6)
		require.Greater(t, f.SentBytes, int64(5*300*50), "five times the endpoints")
		require.Positive(t, f.SourceCPUSeconds)
		require.Positive(t, f.CPUSeconds)
		require.Positive(t, f.SourcePeakRSSBytes)
	}
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]any
	require.NoError(t, json.Unmarshal(raw, &read))
	require.Contains(t, read[Waggle].(map[string]any)["again"], "peak_lists")
	require.Contains(t, read["ratio"], "source_cpu")
	require.EqualValues(t, 5, read["kvstoremeshes"])
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Contains(t, text.String(), "connected: 5 KVStoreMeshes")
	_, err = report.Section()
	require.NoError(t, err)
}

func TestRolloutIsRefused(t *testing.T) {
	mesh := Mesh{Endpoints: 10, Nodes: 1, Identities: 1}
	for want, config := range map[string]RolloutConfig{
		"there must be KVStoreMeshes":   {Config: Config{Mesh: mesh}},
		"endpoints of which some":       {Config: Config{Mesh: Mesh{Nodes: 1, Identities: 1}}, KVStoreMeshes: 1},
		`peer "mirror": must be one or`: {Config: Config{Mesh: mesh, Peers: []string{Mirror}}, KVStoreMeshes: 1},
		"make bin/upstream-rollout":     {Config: Config{Mesh: mesh, Peers: []string{Upstream}, Program: t.TempDir() + "/waggle"}, KVStoreMeshes: 1},
	} {
		_, err := Rollout(t.Context(), config)
		require.ErrorContains(t, err, want)
	}
}
