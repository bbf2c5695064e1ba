// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cmd/waggle/run"
	"github.com/waggle-mesh/waggle/testing/jobs"
)

// notOurs are the modules of a program whose jobs are upstream's.
var notOurs = []string{"health", "infrastructure"}

// startedProgram is one of those that startAll starts.
type startedProgram struct {
	running
	name string
	// status is what is printed of it while all is well; nil where that isn't so.
	status []string
}

// startAll starts each program, an etcd last and before it an agent whose kernel can't help
// it to notice misses.
func startAll(t *testing.T) (all []startedProgram) {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "jobs-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	manifests := func(cluster string) string {
		return "--k8s-manifests=" + filepath.Join("..", "..", "testdata", "meshes", "meadow", cluster)
	}
	source, cache := startTestEtcd(t), "http://"+freeAddress(t)
	configs := filepath.Join(dir, "clusters")
	require.NoError(t, os.Mkdir(configs, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(configs, "amber"), []byte("endpoints:\n- "+source+"\n"), 0o644))

	started := func(name string, status []string, args ...string) {
		all = append(all, startedProgram{startProgram(t, dir, name, args...), name, status})
	}
	amber := []string{"--cluster-name=amber", "--cluster-id=1"}
	basil := []string{"--cluster-name=basil", "--cluster-id=2"}
	started("clustermesh", []string{"Health:   OK\n", "Cluster:  amber\n", "Etcd: ", "Queue:    0, 0 of them refused", "Commits: ", "EXPORT "},
		append(amber, manifests("amber"), "--clustermesh-sync-mode=opt-in", "--kvstore-opt=etcd.address="+source)...)
	started("kvstoremesh", []string{"Health:   OK\n", "Etcd: ", "Queue:    0, 0 of them refused", "Commits: ", "SOURCE  ", "\namber   connected for "},
		append(basil, "--enable-heartbeat", "--ondemand-listen-address=unix://"+filepath.Join(dir, "rt.sock"),
			"--clustermesh-config="+configs, "--kvstore-opt=etcd.address="+startTestEtcd(t))...)
	started("incluster-cache", []string{"Health:   OK\n", "Etcd: ", "Lists:    ", "EXPORT "},
		append(basil, manifests("birch"), "--listen-client-urls="+cache)...)
	agent := slices.Concat(basil, []string{"--ipcache-backend=memory", "--clustermesh-config=" + configs})
	started("agent", []string{"Health:     OK\n", "Map:        in-memory map", "On demand:  off\n", "\nown (kubernetes", "\namber "},
		append(agent, manifests("birch"), "--state-dir="+t.TempDir())...)
	// The kernel's part can't be on: there is no such map.
	started("agent", nil, append(agent, "--enable-k8s=false", "--datastore=etcd", "--kvstore-opt=etcd.address="+cache, "--state-dir="+t.TempDir(),
		"--enable-ondemand-resolution", "--ondemand-ipcache-map="+filepath.Join(dir, "none"), "--bpf-root="+t.TempDir())...)
	started("etcd", nil, "--listen-client-urls=http://127.0.0.1:0")
	for _, p := range programs {
		require.True(t, slices.ContainsFunc(all, func(s startedProgram) bool { return s.name == p.name }), "%s is looked at as well", p.name)
	}
	return all
}

// TestJobsReport starts each program, and whatever runs in it as a job says something of
// itself.
func TestJobsReport(t *testing.T) {
	all := startAll(t)
	for _, w := range all {
		require.EventuallyWithT(t, func(collect *assert.CollectT) {
			names, silent := jobs.Silent(slices.Values(slices.DeleteFunc(w.health(), func(row types.Status) bool {
				return slices.Contains(notOurs, row.ID.Module[0])
			})))
			assert.NotEmpty(collect, names, w.name)
			assert.Empty(collect, silent, w.name)
		}, 2*time.Minute, 20*time.Millisecond)
	}

	// And all of them can be asked, each for what it has.
	for _, w := range all {
		if w.status != nil {
			until(t, w.status, "status", "--shell-sock-path="+w.socket)
		}
	}
	noStatus := all[len(all)-1]
	_, err := waggle("status", "--shell-sock-path="+noStatus.socket)
	require.Error(t, err, "an etcd has no status")
	require.NotErrorIs(t, err, run.ErrUnhealthy)
	// This one's kernel can't help it, and it says so.
	cached := all[len(all)-2]
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		out, err := waggle("status", "--shell-sock-path="+cached.socket)
		assert.ErrorIs(collect, err, run.ErrUnhealthy)
		assert.Regexp(collect, `(?m)^own \(etcd, \S+\) +connected for \S+ +yes `, out)
		assert.Regexp(collect, `(?m)^agent\.\S*\.kernel +\d\S* +There are no signals of misses: `, out)
		assert.Contains(collect, out, "Health:     not OK (1), see below\n")
	}, 2*time.Minute, 50*time.Millisecond)
}
