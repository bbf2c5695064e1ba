// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// asAgent has the test's binary be cilium-agent. Its value is the directory that
// is its --lib-dir.
const asAgent = "WAGGLE_TEST_AGENT"

// TestMain is the tests, or, in a process that one of them starts, the agent.
func TestMain(m *testing.M) {
	directory := os.Getenv(asAgent)
	if directory == "" {
		os.Exit(m.Run())
	}
	if err := ownDirectories(directory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	main()
}

// ownDirectories has the agent's fixed paths lead elsewhere, in the mount namespace that
// the process has been given, and there what it looks for of the datapath's sources,
// which upstream's image has: a directory.
func ownDirectories(directory string) error {
	if err := os.MkdirAll(filepath.Join(directory, "bpf", "include", "bpf"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts to the process: %w", err)
	}
	for _, path := range []string{"/var/run", "/sys/fs/bpf"} {
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mounting an own %s: %w", path, err)
		}
	}
	return nil
}

// run runs cilium-agent until it ends, in namespaces of its own, and gives what it says.
func run(t *testing.T, directory string, args ...string) (said string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	process := exec.CommandContext(ctx, "/proc/self/exe", args...)
	process.Env = append(os.Environ(), asAgent+"="+directory)
	process.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	out, err := process.CombinedOutput()
	require.NoError(t, ctx.Err(), "it neither starts nor ends:\n%s", out)
	return string(out), err
}

// TestRefused starts the agent with flags that contradict one another. It is refused
// with the reason, and before anything else of the agent has started.
func TestRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		skip.Lacking(t, errors.New("cilium-agent and its namespaces need root"))
	}
	const cache = "--kvstore-opt=etcd.address=http://127.0.0.1:1"
	for name, of := range map[string]struct {
		flags  []string
		reason string
		// made: what makes the agent's parts refuses it, and so the command "hive" as well.
		made bool
	}{
		"no such datastore": {[]string{"--datastore=clay"}, `--datastore="clay": must be kubernetes, etcd or none`, false},
		"no cache":          {[]string{"--datastore=etcd"}, "--datastore=etcd needs the address of the in-cluster cache", false},
		"two sources": {[]string{"--datastore=etcd", "--kvstore=etcd", cache},
			"--datastore=etcd reads this cluster's state from its cache, and --kvstore=etcd names another source", true},
		"no such ingest":                    {[]string{"--clustermesh-ingest=both"}, `--clustermesh-ingest="both": must be upstream or waggle`, true},
		"no connections to ask over":        {[]string{"--enable-ondemand-resolution"}, "--enable-ondemand-resolution needs --clustermesh-ingest=waggle", false},
		"remote clusters, and no ID":        {[]string{"--clustermesh-ingest=waggle", "--clustermesh-config=" + t.TempDir()}, "--cluster-id=0", false},
		"a jitter that can't be":            {[]string{"--datastore=etcd", cache, "--incluster-cache-relist-jitter=-1s"}, "--incluster-cache-relist-jitter=-1s", false},
		"a snapshot interval that can't be": {[]string{"--datastore=etcd", cache, "--datastore-snapshot-interval=-1s"}, "--datastore-snapshot-interval=-1s", false},
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			said, err := run(t, directory, append([]string{"--lib-dir=" + directory, "--hive-log-threshold=0s"}, of.flags...)...)
			require.Error(t, err, said)
			require.Contains(t, strings.ReplaceAll(said, `\"`, `"`), of.reason)
			require.NotContains(t, said, "Start hook executed", "something had started")
			said, err = run(t, directory, append([]string{"hive"}, of.flags...)...)
			require.Equal(t, of.made, err != nil, said)
			if of.made {
				require.Contains(t, said, of.reason)
			}
		})
	}
}
