// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/bench"
)

// TestMain makes the test's program waggle itself, for what benchmarks start.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
		return
	}
	os.Exit(m.Run())
}

// figuresOf runs a benchmark as a user does, and gives our figures.
func figuresOf(t *testing.T, args ...string) map[string]any {
	t.Helper()
	var out bytes.Buffer
	root := newRootCmd()
	root.SetArgs(slices.Concat([]string{"bench"}, args, []string{"--rounds=1", "-o", "json"}))
	root.SetOut(&out)
	require.NoError(t, root.ExecuteContext(t.Context()))
	var report map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &report))
	require.Contains(t, report, bench.Waggle)
	return report[bench.Waggle].(map[string]any)
}

// TestBenchKVStoreMesh goes through all scenarios: nothing is lost, and no more is
// written than has changed.
func TestBenchKVStoreMesh(t *testing.T) {
	figures := figuresOf(t, "kvstoremesh", "--clusters=2", "--endpoints=300", "--nodes=2", "--identities=3", "--services=1")
	require.EqualValues(t, 612, figures["keys"])
	require.Contains(t, figures["phases"], "connect")
	restart, replaced := figures["restart"].(map[string]any), figures["switch"].(map[string]any)
	require.EqualValues(t, 0, restart["writes"].(map[string]any)["puts"])
	writes := replaced["writes"].(map[string]any)
	require.EqualValues(t, replaced["changed"], writes["puts"].(float64)+writes["deletes"].(float64))
}

// TestBenchRollout replaces the source of two KVStoreMeshes.
func TestBenchRollout(t *testing.T) {
	figures := figuresOf(t, "rollout", "--kvstoremeshes=2", "--endpoints=100", "--nodes=2", "--identities=3")
	again := figures["again"].(map[string]any)
	require.EqualValues(t, 2*6, again["lists"])
	require.Positive(t, again["peak_lists"])
	require.Positive(t, figures["sent_bytes"])
	require.Positive(t, figures["seconds"])
}
