// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMirrors copies what is there, is ready then, and copies what changes.
func TestMirrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sourceConfig, source := startEtcd(t)
	localConfig, local := startEtcd(t)
	configs := t.TempDir()
	require.NoError(t, os.Symlink(sourceConfig, filepath.Join(configs, "east")))
	from, to := wire.StatePrefix(wire.Nodes, "east"), wire.CachePrefix(wire.Nodes, "east")
	for i := range 5 {
		put(t, source, fmt.Sprintf("%sn%d", from, i), "old")
	}
	put(t, source, wire.StatePrefix(wire.Nodes, "easter")+"n", "of another cluster")

	listener, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	done := make(chan error, 1)
	go func() { done <- run(ctx, options{configs: configs, local: localConfig, healthPort: port}) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	require.Eventually(t, func() bool {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", port))
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, map[string]string{to + "n0": "old", to + "n1": "old", to + "n2": "old", to + "n3": "old", to + "n4": "old"}, list(t, local))

	put(t, source, from+"n0", "new")
	_, err = source.Txn(ctx).Then(clientv3.OpDelete(from+"n1"), clientv3.OpPut(from+"n5", "new")).Commit()
	require.NoError(t, err)
	require.Eventually(t, func() bool { return list(t, local)[to+"n5"] == "new" }, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, map[string]string{to + "n0": "new", to + "n2": "old", to + "n3": "old", to + "n4": "old", to + "n5": "new"}, list(t, local))
	cancel()
	require.NoError(t, <-done)
}

// startEtcd starts an etcd for the time of the test, and gives its clients'
// configuration file and a client.
func startEtcd(t *testing.T) (config string, client *clientv3.Client) {
	t.Helper()
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	config = filepath.Join(t.TempDir(), "etcd.yaml")
	require.NoError(t, os.WriteFile(config, []byte("endpoints:\n- "+server.URL()+"\n"), 0o600))
	client, err = open(config)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return config, client
}

func put(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	_, err := client.Put(t.Context(), key, value)
	require.NoError(t, err)
}

func list(t *testing.T, client *clientv3.Client) map[string]string {
	t.Helper()
	resp, err := client.Get(t.Context(), wire.CacheRoot, clientv3.WithPrefix())
	require.NoError(t, err)
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[string(kv.Key)] = string(kv.Value)
	}
	return out
}
