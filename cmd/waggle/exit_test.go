// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// process runs a command line as a process of its own, and gives what a script sees of it.
func process(t require.TestingT, args ...string) (code int, stdout, stderr string) {
	self, err := os.Executable() // which is waggle: see TestMain
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestExitStatus: a script tells by the exit status of "waggle status" what is well from
// what isn't, and from what can't be asked.
func TestExitStatus(t *testing.T) {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "exit-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	store, configs := startTestEtcd(t), filepath.Join(dir, "clusters")
	require.NoError(t, os.Mkdir(configs, 0o755))
	exporter := startProgram(t, dir, "clustermesh", "--cluster-name=amber", "--cluster-id=1",
		"--k8s-manifests="+filepath.Join("..", "..", "testdata", "meshes", "meadow", "amber"), "--kvstore-opt=etcd.address="+store)
	mesh := startProgram(t, dir, "kvstoremesh", "--cluster-name=basil", "--cluster-id=2",
		"--clustermesh-config="+configs, "--kvstore-opt=etcd.address="+startTestEtcd(t))
	is := func(want int, health, complaint string, args ...string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			code, stdout, stderr := process(c, append([]string{"status"}, args...)...)
			assert.Equal(c, want, code, "%s%s", stdout, stderr)
			assert.Contains(c, stdout, health)
			assert.Contains(c, stderr, complaint)
			assert.Equal(c, complaint == "", stderr == "", stderr)
		}, 2*time.Minute, 50*time.Millisecond)
	}

	well, away := "--shell-sock-path="+exporter.socket, "--shell-sock-path="+mesh.socket
	is(0, "Health:   OK\n", "", well)
	is(0, `"healthy": true`, "", well, "-o", "json")
	is(0, "Health:   OK\n", "", away)
	require.NoError(t, os.WriteFile(filepath.Join(configs, "ghost"), []byte("endpoints:\n- unix://"+filepath.Join(dir, "nobody.sock")+"\n"), 0o644))
	is(1, "ghost ", "waggle: ", away)
	is(1, `"healthy": false`, "waggle: ", away, "-o", "json")
	is(0, "Health:   OK\n", "", well)
	is(1, "Health:   OK\n", "not running", well+","+filepath.Join(dir, "absent.sock"))
	is(1, "", "no mesh runs", "--run-dir="+filepath.Join(dir, "none"))
}
