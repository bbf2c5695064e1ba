// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// checkTakeOver has a second replica of KVStoreMesh, and the first one, which leads, die
// of SIGKILL: the lock and the leases are left to themselves, on an etcd with TLS and
// users. What was cached isn't touched, and what is new comes once.
func checkTakeOver(t *testing.T, p *pod, client *clientv3.Client, leader *exec.Cmd) {
	t.Helper()
	const health, metricsAt = 9980, 9981
	second := p.container("kvstoremesh")
	second.Args = append(second.Args, fmt.Sprintf("--health-port=%d", health), fmt.Sprintf("--prometheus-serve-addr=:%d", metricsAt),
		"--api-serve-addr=localhost:9982", "--gops-port=9983")
	p.start("kvstoremesh-2", p.command(second))
	require.Eventually(t, func() bool {
		return status(fmt.Sprintf("http://127.0.0.1:%d%s", health, second.ReadinessProbe.HTTPGet.Path)) == http.StatusOK
	}, patience, 50*time.Millisecond, "who waits is ready")
	leads := func(port int32) string {
		return regexp.MustCompile(`(?m)^\w+_leader_election_master_status(?:\{.*\})? (\d)$`).FindString(
			scrape(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", port)))
	}
	require.Regexp(t, " 1$", leads(metricsPort(t, second)))
	require.Regexp(t, " 0$", leads(metricsAt))

	cached := func() map[string]int64 {
		resp, err := client.Get(t.Context(), wire.CacheRoot, clientv3.WithPrefix())
		require.NoError(t, err)
		revisions := map[string]int64{}
		for _, kv := range resp.Kvs {
			revisions[string(kv.Key)] = kv.ModRevision
		}
		return revisions
	}
	before, err := client.Get(t.Context(), wire.CacheRoot, clientv3.WithPrefix())
	require.NoError(t, err)
	was := cached()
	require.NotEmpty(t, was)
	changes := client.Watch(t.Context(), wire.CacheRoot, clientv3.WithPrefix(), clientv3.WithRev(before.Header.Revision+1))

	require.NoError(t, leader.Process.Kill())
	require.Eventually(t, func() bool { return strings.HasSuffix(leads(metricsAt), " 1") }, patience, 50*time.Millisecond,
		"the second takes over once the lock's lease has ended")
	_, err = p.etcd("admin-north", northPort).Put(t.Context(), wire.StatePrefix(wire.Endpoints, "north")+"10.1.0.11", `{"IP":"10.1.0.11","ID":65547,"HostIP":"172.18.0.2"}`)
	require.NoError(t, err)
	added := wire.CachePrefix(wire.Endpoints, "north") + "10.1.0.11"
	select {
	case change := <-changes:
		require.NoError(t, change.Err())
		require.Len(t, change.Events, 1)
		require.Equal(t, added, string(change.Events[0].Kv.Key))
	case <-time.After(patience):
		t.Fatal("the new endpoint doesn't come")
	}
	is := cached()
	require.Contains(t, is, added)
	delete(is, added)
	require.Equal(t, was, is, "each key as it was, by its revision")
}
