// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// needBPF skips a test where maps can't be made.
func needBPF(t *testing.T) {
	t.Helper()
	if _, err := newMapWatch(hivetest.Logger(t)); err != nil {
		t.Skipf("BPF maps can't be used here: %v", err)
	}
}

// peerThatSays is a program that behaves as a peer with so many endpoints does.
func peerThatSays(t *testing.T, entries int) string {
	path := filepath.Join(t.TempDir(), ingestProgram)
	script := fmt.Sprintf("#!/bin/sh\necho synced $(date +%%s%%N) %d\nexec sleep 60\n", entries)
	require.NoError(t, os.WriteFile(path, []byte(script), 0o700))
	return path
}

// TestIngest takes a small mesh into a map, and checks that the figures agree
// with each other. It says nothing about speed.
func TestIngest(t *testing.T) {
	needBPF(t)
	config := Config{
		Mesh: Mesh{Clusters: 2, Endpoints: 50, Nodes: 3, Identities: 4}, Rounds: 1, Timeout: time.Minute, Program: os.Args[0],
		Peers: []string{Upstream, UpstreamShipped}, PeerProgram: peerThatSays(t, 100), Log: hivetest.Logger(t),
	}
	report, err := Ingest(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, []string{Waggle, Upstream, UpstreamShipped}, report.Subjects())
	for _, f := range report.Rounds {
		require.GreaterOrEqual(t, f.Entries, 100)
		require.Positive(t, f.Seconds)
		require.GreaterOrEqual(t, f.PeakRSSBytes, f.AnonRSSBytes)
	}
	require.Positive(t, report.of(Waggle)[0].CPUSeconds)
	raw, err := json.Marshal(report)
	require.NoError(t, err)
	var read map[string]map[string]any
	_ = json.Unmarshal(raw, &read) // some fields aren't objects
	for _, name := range []string{"seconds", "cpu_seconds", "peak_rss_bytes"} {
		require.Contains(t, read[Waggle], name)
		require.Contains(t, read[Upstream], name)
	}
	require.Contains(t, read["ratio"], "seconds")
	require.Contains(t, read["ratio"], "rss")
	var text strings.Builder
	require.NoError(t, report.WriteText(&text))
	require.Contains(t, text.String(), "upstream-shipped ÷ waggle")

	config.PeerProgram = peerThatSays(t, 99)
	_, err = Ingest(t.Context(), config)
	require.ErrorContains(t, err, "it has 99 endpoints of 100")
}

func TestIngestIsRefused(t *testing.T) {
	_, err := Ingest(t.Context(), Config{Mesh: Mesh{Clusters: 1, Nodes: 1, Identities: 1}})
	require.ErrorContains(t, err, "must be endpoints")
	needBPF(t)
	_, err = Ingest(t.Context(), Config{Mesh: Mesh{Clusters: 1, Nodes: 1, Identities: 1, Endpoints: 1}, Peers: []string{"downstream"}, Log: hivetest.Logger(t)})
	require.ErrorContains(t, err, `peer "downstream"`)
}
