// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestInClusterCacheProgram runs the whole program: it becomes ready, and says by
// its metrics what it has.
func TestInClusterCacheProgram(t *testing.T) {
	var p program
	for _, candidate := range programs {
		if candidate.name == "incluster-cache" {
			p = candidate
		}
	}
	h := p.hive()
	metricsAt, healthPort := freeAddress(t), freeAddress(t)
	_, port, err := net.SplitHostPort(healthPort)
	require.NoError(t, err)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse([]string{
		"--k8s-manifests=" + filepath.Join("..", "..", "testdata", "meshes", "meadow", "amber"),
		"--listen-client-urls=http://127.0.0.1:0",
		"--prometheus-serve-addr=" + metricsAt, "--health-port=" + port,
		"--shell-sock-path=" + filepath.Join(t.TempDir(), "shell.sock"),
	}))
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { assert.NoError(t, h.Stop(log, context.Background())) })

	get := func(collect *assert.CollectT, url string) string {
		resp, err := http.Get(url)
		if !assert.NoError(collect, err) {
			return ""
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		assert.NoError(collect, err)
		assert.Equal(collect, http.StatusOK, resp.StatusCode)
		return string(body)
	}
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		get(collect, "http://127.0.0.1:"+port+"/readyz")
		text := get(collect, "http://"+metricsAt+"/metrics")
		for _, want := range []string{
			`waggle_incluster_cache_keys{resource="endpoints"} 16`,
			`waggle_incluster_cache_keys{resource="services"} 3`,
			"waggle_incluster_cache_lists 0",
			"waggle_incluster_cache_lists_postponed_total 0",
			"waggle_incluster_cache_pending_changes 0",
			"waggle_etcd_lag_seconds 0",
			`cilium_kvstore_initial_sync_completed{action="write",scope="ip/v1",source_cluster="default"} 1`,
			`cilium_kvstore_sync_queue_size{scope="ip/v1",source_cluster="default"} 0`,
		} {
			assert.True(collect, strings.Contains(text, want+"\n"), want)
		}
		assert.Contains(collect, text, `cilium_kvstore_operations_duration_seconds_count{action="txn",kind="set",outcome="success",scope="ip/v1"} `)
	}, time.Minute, 20*time.Millisecond)
}

// freeAddress is a loopback address that nobody listens at now.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}
