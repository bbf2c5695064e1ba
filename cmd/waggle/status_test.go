// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

// TestStatusOfBadClusters has a mesh of one good cluster, one that is away, one whose
// configuration is malformed, and one with the ID of another: the health of each of those
// is degraded, with the reason and since when, and nothing else is.
func TestStatusOfBadClusters(t *testing.T) {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "status-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	source, twin := startTestEtcd(t), startTestEtcd(t)
	exporter := startProgram(t, dir, "clustermesh", "--cluster-name=amber", "--cluster-id=1",
		"--k8s-manifests="+filepath.Join("..", "..", "testdata", "meshes", "meadow", "amber"), "--kvstore-opt=etcd.address="+source)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{twin}})
	require.NoError(t, err)
	_, err = client.Put(t.Context(), "cilium/cluster-config/twin", `{"id":2,"capabilities":{}}`)
	require.NoError(t, errors.Join(err, client.Close()))
	configs := filepath.Join(dir, "clusters")
	require.NoError(t, os.Mkdir(configs, 0o755))
	for name, text := range map[string]string{
		"amber": "endpoints:\n- " + source + "\n",
		"ghost": "endpoints:\n- unix://" + filepath.Join(dir, "nobody.sock") + "\n",
		"torn":  "endpoints: [\n",
		"twin":  "endpoints:\n- " + twin + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(configs, name), []byte(text), 0o644))
	}
	bad := []string{"ghost", "torn", "twin"}
	mesh := startProgram(t, dir, "kvstoremesh", "--cluster-name=basil", "--cluster-id=2", "--per-cluster-ready-timeout=1s",
		"--clustermesh-config="+configs, "--kvstore-opt=etcd.address="+startTestEtcd(t))

	until(t, []string{"Health:   OK\n", "complete\n"}, "status", "--shell-sock-path="+exporter.socket)

	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle("status", "--shell-sock-path="+mesh.socket, "-o", "json")
		assert.ErrorIs(collect, err, run.ErrUnhealthy)
		var processes []run.Process
		if !assert.NoError(collect, json.Unmarshal([]byte(out), &processes)) || !assert.Len(collect, processes, 1) {
			return
		}
		report := processes[0].Status
		assert.False(collect, report.Healthy)
		if !assert.Len(collect, report.Clusters, 1+len(bad)) {
			return
		}
		amber := report.Clusters[0]
		assert.True(collect, amber.Connected && amber.Synced && amber.Problem == "", "%+v", amber)
		for _, other := range report.Clusters[1:] {
			assert.False(collect, other.Synced, "%+v", other)
			assert.NotEmpty(collect, other.Problem, "%+v", other)
		}
		assert.Zero(collect, report.Etcd.Queue)
		of := make(map[string]int)
		for _, problem := range report.Problems {
			at := slices.IndexFunc(bad, func(name string) bool { return strings.Contains(problem.Subject, "remote-"+name+"_etcd") })
			if assert.GreaterOrEqual(collect, at, 0, "%+v", problem) {
				of[bad[at]]++
			}
			assert.NotEmpty(collect, problem.Reason)
			assert.NotNil(collect, problem.Since, "%+v", problem)
		}
		assert.Equal(collect, map[string]int{"ghost": 1, "torn": 1, "twin": 1}, of)
	}, 2*time.Minute, 50*time.Millisecond)

	// In health it is the scopes of those clusters alone, and the process is ready.
	for _, row := range mesh.health() {
		degraded := slices.ContainsFunc(bad, func(name string) bool { return strings.Contains(row.ID.String(), "remote-"+name+"_etcd") })
		require.Equal(t, degraded, row.Level == types.LevelDegraded, "%s", row)
	}
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		resp, err := http.Get(mesh.ready)
		if assert.NoError(collect, err) {
			assert.NoError(collect, resp.Body.Close())
			assert.Equal(collect, http.StatusOK, resp.StatusCode)
		}
	}, 2*time.Minute, 50*time.Millisecond)

	// As text, with the same exit status.
	out, err := waggle("status", "--shell-sock-path="+mesh.socket)
	require.ErrorIs(t, err, run.ErrUnhealthy)
	require.Regexp(t, `(?m)^amber +connected for \S+ +yes +3 +4 +16 +2 `, out)
	require.Regexp(t, `(?m)^ghost +away for \S+ +no `, out)
	require.Regexp(t, `(?m)^PROBLEM OF +FOR +REASON$`, out)
	require.Regexp(t, `(?m)^\S*remote-ghost_etcd +\d\S* +No connection to remote cluster: `, out)

	// What can't be asked is named, and what can is told all the same.
	absent := filepath.Join(dir, "absent.sock")
	_, err = waggle("status", "--shell-sock-path="+absent)
	require.ErrorContains(t, err, "absent.sock: not running")
	require.NotErrorIs(t, err, run.ErrUnhealthy)
	out, err = waggle("status", "--shell-sock-path="+exporter.socket+","+absent)
	require.ErrorContains(t, err, "absent.sock: not running")
	require.Contains(t, out, "Health:   OK\n")
	none := filepath.Join(dir, "none")
	_, err = waggle("status", "--run-dir="+none)
	require.ErrorContains(t, err, "no mesh runs in \""+none+"\"")
	_, err = waggle("status", "-o", "yaml", "--shell-sock-path="+exporter.socket)
	require.ErrorContains(t, err, `"yaml" for "-o, --output" flag: must be text or json`)

	mesh.untilMetrics(t, `waggle_remote_cluster_connected{target_cluster="amber"} 1`, `waggle_remote_cluster_connected{target_cluster="ghost"} 0`,
		`waggle_remote_cluster_entries{resource="endpoints",target_cluster="amber"} 16`,
		`cilium_kvstore_initial_sync_completed{action="read",scope="ip/v1",source_cluster="amber"} 1`,
		`cilium_kvstore_initial_sync_completed{action="write",scope="ip/v1",source_cluster="amber"} 1`)
}
