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

// TestTags: with each build tag the program builds, and the hive that it prints lacks the
// cell, which it has otherwise; and the program lacks what the cell alone needs.
func TestTags(t *testing.T) {
	const etcdServer, clientset = "go.etcd.io/etcd/server/v3", "k8s.io/client-go/kubernetes"
	for _, test := range []struct{ tag, program, lacks, unlinked string }{
		{"waggle_memory", "agent", "Endpoints and nodes to the BPF ipcache map", ""},
		{"waggle_no_ondemand", "agent", "Ⓜ️ ondemand", ""},
		{"waggle_no_embedded_etcd", "incluster-cache", "Ⓜ️ etcd-server", etcdServer},
		{"waggle_no_kubernetes", "agent", "Ⓜ️ kubernetes", clientset},
	} {
		t.Run(test.tag, func(t *testing.T) {
			var whole bytes.Buffer
			i := slices.IndexFunc(programs, func(p program) bool { return p.name == test.program })
			hive.New(cell.Config(logConfig{}), programs[i].cells, programs[i].ready, infrastructure()).PrintObjects(&whole, hivetest.Logger(t))
			require.Contains(t, whole.String(), test.lacks)

			graph := graphOf(t, test.tag, ".", test.program, "hive")
			require.Contains(t, graph, "Ⓜ️ state")
			require.NotContains(t, graph, test.lacks)
			if test.unlinked != "" {
				require.Contains(t, packagesOf(t, "", "."), test.unlinked+"/")
				require.NotContains(t, packagesOf(t, test.tag, "."), test.unlinked+"/")
			}
		})
	}

	// Upstream's programs with our cells in them.
	t.Run("cilium-agent", func(t *testing.T) {
		const tags = "waggle_no_ondemand,waggle_no_embedded_etcd"
		graph := graphOf(t, tags, "../cilium-agent", "hive")
		require.Contains(t, graph, "Ⓜ️ waggle")
		require.NotContains(t, graph, "Ⓜ️ ondemand")
		require.NotContains(t, packagesOf(t, tags, "../cilium-agent"), etcdServer+"/")
	})
	t.Run("clustermesh-apiserver", func(t *testing.T) {
		const tags = "waggle_no_embedded_etcd"
		graph := graphOf(t, tags, "../clustermesh-apiserver", "incluster-cache", "hive")
		require.Contains(t, graph, "Ⓜ️ incluster-cache-apiserver")
		require.NotContains(t, graph, "Ⓜ️ etcd-server")
		require.NotContains(t, packagesOf(t, tags, "../clustermesh-apiserver"), etcdServer+"/")
	})
	t.Run("cilium-operator", func(t *testing.T) {
		require.NotContains(t, packagesOf(t, "waggle_no_embedded_etcd", "../../cells/host/operator"), etcdServer+"/")
	})
}

// graphOf builds the program in dir, and gives what it prints.
func graphOf(t *testing.T, tags, dir string, args ...string) string {
	binary := filepath.Join(t.TempDir(), "program")
	said, err := exec.CommandContext(t.Context(), "go", "build", "-tags", tags, "-o", binary, dir).CombinedOutput()
	require.NoError(t, err, "%s", said)
	graph, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	require.NoError(t, err, "%s", graph)
	return string(graph)
}

// packagesOf are those that a build of dir is made of.
func packagesOf(t *testing.T, tags, dir string) string {
	list := exec.CommandContext(t.Context(), "go", "list", "-tags", tags, "-deps", dir)
	list.Stderr = t.Output()
	packages, err := list.Output()
	require.NoError(t, err)
	return string(packages)
}
