// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCounted lists a prefix in pages, and leaves another list half done: both
// are counted, one after the other.
func TestCounted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	config := CountedConfig{DataDir: t.TempDir(), ListenURL: "http://" + free.Addr().String(), Socket: filepath.Join(t.TempDir(), "status")}
	done := make(chan error, 1)
	go func() { done <- RunCounted(ctx, config) }()
	defer func() { cancel(); require.NoError(t, <-done) }()
	require.Eventually(t, func() bool { _, err := AskLists(ctx, config.Socket); return err == nil }, 30*time.Second, 10*time.Millisecond)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{config.ListenURL}})
	require.NoError(t, err)
	defer client.Close()
	for i := range 5 {
		_, err := client.Put(ctx, fmt.Sprintf("a/%d", i), "x")
		require.NoError(t, err)
	}
	_, err = client.Get(ctx, "a/1")
	require.NoError(t, err)
	_, err = client.Get(ctx, "a/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	before, err := AskLists(ctx, config.Socket)
	require.NoError(t, err)
	require.Zero(t, before.Lists, "one key, and a count")

	end := clientv3.WithRange(clientv3.GetPrefixRangeEnd("a/"))
	for _, from := range []string{"a/", "a/2\x00", "a/4\x00"} {
		_, err = client.Get(ctx, from, end, clientv3.WithLimit(3))
		require.NoError(t, err)
	}
	status, err := AskLists(ctx, config.Socket)
	require.NoError(t, err)
	require.Equal(t, 1, status.Lists)
	require.Equal(t, 1, status.Peak)
	require.Equal(t, 1, status.PeakPages)
	require.Greater(t, status.SentBytes, before.SentBytes)

	_, err = client.Get(ctx, "a/", end, clientv3.WithLimit(3))
	require.NoError(t, err)
	_, err = client.Get(ctx, "b/", clientv3.WithPrefix())
	require.NoError(t, err)
	status, err = AskLists(ctx, config.Socket)
	require.NoError(t, err)
	require.Equal(t, 2, status.Lists)
	require.Equal(t, 2, status.Peak, "the first one isn't done")
	require.Equal(t, 1, status.PeakPages)
}
