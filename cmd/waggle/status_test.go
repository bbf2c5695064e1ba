// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

// TestStatusOfBadCluster has a mesh of one good cluster and one that is away: that one's
// health is degraded, with the reason, and nothing else is.
func TestStatusOfBadCluster(t *testing.T) {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "status-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	source := startTestEtcd(t)
	exporter := startProgram(t, dir, "clustermesh", "--cluster-name=amber", "--cluster-id=1",
		"--k8s-manifests="+filepath.Join("..", "..", "testdata", "meshes", "meadow", "amber"), "--kvstore-opt=etcd.address="+source)
	configs := filepath.Join(dir, "clusters")
	require.NoError(t, os.Mkdir(configs, 0o755))
	for name, url := range map[string]string{"amber": source, "ghost": "unix://" + filepath.Join(dir, "nobody.sock")} {
		require.NoError(t, os.WriteFile(filepath.Join(configs, name), []byte("endpoints:\n- "+url+"\n"), 0o644))
	}
	mesh := startProgram(t, dir, "kvstoremesh", "--cluster-name=basil", "--cluster-id=2",
		"--clustermesh-config="+configs, "--kvstore-opt=etcd.address="+startTestEtcd(t))

	until(t, []string{"Health:   OK\n", "complete\n"}, "status", "--shell-sock-path="+exporter.socket)

	var report *status.Report
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle("status", "--shell-sock-path="+mesh.socket, "-o", "json")
		assert.ErrorIs(collect, err, run.ErrUnhealthy)
		var processes []run.Process
		if !assert.NoError(collect, json.Unmarshal([]byte(out), &processes)) || !assert.Len(collect, processes, 1) {
			return
		}
		report = processes[0].Status
		assert.False(collect, report.Healthy)
		if !assert.Len(collect, report.Clusters, 2) || !assert.NotEmpty(collect, report.Problems) {
			return
		}
		amber, ghost := report.Clusters[0], report.Clusters[1]
		assert.True(collect, amber.Connected && amber.Synced && amber.Problem == "", "%+v", amber)
		assert.False(collect, ghost.Connected || ghost.Synced)
		assert.NotEmpty(collect, ghost.Problem)
		assert.Zero(collect, report.Etcd.Queue)
		for _, problem := range report.Problems {
			assert.True(collect, strings.Contains(problem.Subject, "ghost"), "%+v", problem)
			assert.NotEmpty(collect, problem.Reason)
		}
	}, 2*time.Minute, 50*time.Millisecond)

	// As text, with the same exit status.
	out, err := waggle("status", "--shell-sock-path="+mesh.socket)
	require.ErrorIs(t, err, run.ErrUnhealthy)
	require.Regexp(t, `(?m)^amber +connected for \S+ +yes +3 +4 +16 +2 `, out)
	require.Regexp(t, `(?m)^ghost +away for \S+ +no `, out)
	require.Contains(t, out, "PROBLEM OF")
	_, err = waggle("status", "--shell-sock-path="+filepath.Join(dir, "absent.sock"))
	require.ErrorContains(t, err, "not running")

	mesh.untilMetrics(t, `waggle_remote_cluster_connected{target_cluster="amber"} 1`, `waggle_remote_cluster_connected{target_cluster="ghost"} 0`,
		`waggle_remote_cluster_entries{resource="endpoints",target_cluster="amber"} 16`,
		`cilium_kvstore_initial_sync_completed{action="read",scope="ip/v1",source_cluster="amber"} 1`,
		`cilium_kvstore_initial_sync_completed{action="write",scope="ip/v1",source_cluster="amber"} 1`)
}
