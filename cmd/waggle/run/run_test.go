// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package run

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// A directory that is somebody's, say the dumps themselves, must survive being
// named by --run-dir.
func TestClaimKeepsForeignFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	file := filepath.Join(dir, "precious")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))

	_, err := claim(dir)
	require.ErrorContains(t, err, "--run-dir")
	require.FileExists(t, file)
	require.NoFileExists(t, dir+".lock")
}

func TestClaimCleansUpAfterKilledRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	release, err := claim(dir)
	require.NoError(t, err)

	_, err = claim(dir)
	require.ErrorContains(t, err, "already runs")

	left := filepath.Join(dir, "left")
	require.NoError(t, os.WriteFile(left, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600))
	require.NoError(t, empty(dir)) // what the next run begins with
	require.NoFileExists(t, left)
	require.NoFileExists(t, filepath.Join(dir, ".hidden"))

	require.NoError(t, release())
	require.NoDirExists(t, dir)
	require.NoFileExists(t, dir+".lock")
}

func TestOptionsValidate(t *testing.T) {
	require.NoError(t, Options{RunDir: "x", Backend: "auto"}.validate())
	require.ErrorContains(t, Options{Backend: "auto"}.validate(), "--run-dir")
	require.ErrorContains(t, Options{RunDir: "x", Backend: "magic"}.validate(), "--ipcache-backend")
}

// Beyond the kernel's limit a shell can't listen, and the run would wait for it
// without end.
func TestPrepareRefusesLongRunDir(t *testing.T) {
	_, err := prepare(filepath.Join(t.TempDir(), strings.Repeat("d", 100)), []Cluster{{Name: "amber", ID: 1}})
	require.ErrorContains(t, err, "--run-dir")
}

// The first cluster has a cache, and its agent reads that; the others have neither.
func TestPrepareCache(t *testing.T) {
	layout, err := prepare(t.TempDir(), []Cluster{{Name: "amber", ID: 1}, {Name: "birch", ID: 2}})
	require.NoError(t, err)
	first, second := layout.Clusters[0], layout.Clusters[1]
	require.NotEmpty(t, first.Cache)
	require.NotEqual(t, first.Etcd, first.Cache)
	require.Empty(t, second.Cache)
	require.Contains(t, layout.arguments(first, partCache, agentFlags{backend: "memory"}), "--listen-client-urls="+first.Cache)
	require.Subset(t, layout.arguments(first, partAgent, agentFlags{backend: "memory"}), []string{"--datastore=etcd", "--kvstore-opt=etcd.address=" + first.Cache})
	require.NotContains(t, layout.arguments(second, partAgent, agentFlags{backend: "memory"}), "--datastore=etcd")
	var names []string
	for _, p := range newMesh(layout, agentFlags{backend: "memory"}, nil, nil).processes {
		names = append(names, p.name)
	}
	require.Contains(t, names, "amber/incluster-cache")
	require.NotContains(t, names, "birch/incluster-cache")
}

// Everything that a run writes is in its directory, so that a real agent of the machine
// keeps what is its own: the agents' default state directory is that agent's.
func TestArgumentsStayInRunDir(t *testing.T) {
	dir := t.TempDir()
	layout, err := prepare(dir, []Cluster{{Name: "amber", ID: 1}, {Name: "birch", ID: 2}})
	require.NoError(t, err)
	states := map[string]bool{}
	for _, place := range layout.Clusters {
		args := layout.arguments(place, partAgent, agentFlags{backend: "memory"})
		at := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--state-dir=") })
		require.GreaterOrEqual(t, at, 0, args)
		state := strings.TrimPrefix(args[at], "--state-dir=")
		require.True(t, strings.HasPrefix(state, dir+"/"), state)
		require.False(t, states[state], "each has its own")
		states[state] = true
	}
}

func TestPinsOfRunsDiffer(t *testing.T) {
	a, b := Layout{Dir: "/a"}.pins(), Layout{Dir: "/b"}.pins()
	require.NotEqual(t, a, b)
	require.NotContains(t, a, ".") // the BPF file system refuses it
}

// Each KVStoreMesh serves its read-through where its own cluster's agent asks, if the run
// has them resolve at all.
func TestPrepareReadThrough(t *testing.T) {
	layout, err := prepare(t.TempDir(), []Cluster{{Name: "amber", ID: 1}, {Name: "birch", ID: 2}})
	require.NoError(t, err)
	for _, place := range layout.Clusters {
		path := layout.readThroughConfig(place)
		require.Contains(t, layout.arguments(place, partKVStoreMesh, agentFlags{}), "--ondemand-listen-address="+layout.readThrough(place))
		require.Contains(t, layout.arguments(place, partAgent, agentFlags{}), "--enable-ondemand-resolution=false")
		require.Subset(t, layout.arguments(place, partAgent, agentFlags{onDemand: true}),
			[]string{"--enable-ondemand-resolution=true", "--ondemand-etcd-config=" + path})
		endpoints, err := etcd.ClientConfig{ConfigPath: path}.ConfiguredEndpoints()
		require.NoError(t, err)
		require.Equal(t, []string{layout.readThrough(place)}, endpoints)
	}
}
