// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
)

// TestTags: with each build tag the program builds, and the hive that it prints lacks
// the cell, which it has otherwise.
func TestTags(t *testing.T) {
	for _, test := range []struct{ tag, program, lacks string }{
		{"waggle_no_ondemand", "agent", "Ⓜ️ ondemand"},
		{"waggle_no_embedded_etcd", "incluster-cache", "Ⓜ️ etcd-server"},
	} {
		t.Run(test.tag, func(t *testing.T) {
			var whole bytes.Buffer
			i := slices.IndexFunc(programs, func(p program) bool { return p.name == test.program })
			hive.New(cell.Config(logConfig{}), programs[i].cells, programs[i].ready, infrastructure()).PrintObjects(&whole, hivetest.Logger(t))
			require.Contains(t, whole.String(), test.lacks)

			binary := filepath.Join(t.TempDir(), "waggle")
			said, err := exec.CommandContext(t.Context(), "go", "build", "-tags", test.tag, "-o", binary, ".").CombinedOutput()
			require.NoError(t, err, "%s", said)
			graph, err := exec.CommandContext(t.Context(), binary, test.program, "hive").CombinedOutput()
			require.NoError(t, err, "%s", graph)
			require.Contains(t, string(graph), "Ⓜ️ state")
			require.NotContains(t, string(graph), test.lacks)
		})
	}
}
