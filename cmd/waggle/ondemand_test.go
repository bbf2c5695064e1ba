// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// startAgent runs the whole program, with its map in memory, and gives the address of
// its metrics and the socket of its shell.
func startAgent(t *testing.T, args ...string) (metrics, shell string) {
	p := programs[slices.IndexFunc(programs, func(p program) bool { return p.name == "agent" })]
	h := hive.New(p.cells, p.ready, infrastructure())
	metrics, shell = freeAddress(t), filepath.Join(t.TempDir(), "shell.sock")
	_, port, err := net.SplitHostPort(freeAddress(t))
	require.NoError(t, err)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse(append([]string{
		"--cluster-id=1", "--cluster-name=home", "--enable-k8s=false", "--ipcache-backend=memory",
		"--prometheus-serve-addr=" + metrics, "--health-port=" + port, "--shell-sock-path=" + shell,
		"--state-dir=" + t.TempDir(),
	}, args...)))
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })
	return metrics, shell
}

func runOnDemand(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := newRootCmd()
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"ondemand", "list"}, args...))
	err := cmd.Execute()
	return out.String(), err
}

func TestOnDemandList(t *testing.T) {
	// A map of nobody's: the feature is on, and the kernel's part can't be.
	metrics, shell := startAgent(t, "--enable-ondemand-resolution", "--ondemand-ipcache-map="+filepath.Join(t.TempDir(), "none"),
		"--bpf-root="+t.TempDir())
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		out, err := runOnDemand("--shell-sock-path="+shell, "-o", "json")
		require.NoError(c, err)
		var lists []ondemand.List
		require.NoError(c, json.Unmarshal([]byte(out), &lists))
		require.Len(c, lists, 1)
		require.Equal(c, "home", lists[0].Cluster)
		require.Empty(c, lists[0].Entries)
	}, time.Minute, 10*time.Millisecond)
	out, err := runOnDemand("--shell-sock-path=" + shell)
	require.NoError(t, err)
	require.Contains(t, out, "KIND")

	require.EventuallyWithT(t, func(c *assert.CollectT) {
		resp, err := http.Get("http://" + metrics + "/metrics")
		require.NoError(c, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(c, err)
		for _, name := range []string{
			`waggle_ondemand_misses_total{outcome="negative",side="destination"} 0`,
			`waggle_ondemand_resolution_duration_seconds_count 0`,
			`waggle_ondemand_entries{kind="endpoint"} 0`,
			`waggle_ondemand_signals_total{result="rate-limited"} 0`,
		} {
			require.Contains(c, string(body), name)
		}
	}, time.Minute, 10*time.Millisecond)
}

func TestOnDemandListWhereItIsOff(t *testing.T) {
	_, shell := startAgent(t)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		out, err := runOnDemand("--shell-sock-path="+shell, "-o", "json")
		require.ErrorContains(c, err, "enable-ondemand-resolution")
		require.Equal(c, "[]\n", out)
	}, time.Minute, 10*time.Millisecond)
}
