// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestReaders tells two commits to three readers, beside what isn't of their run.
func TestReaders(t *testing.T) {
	log := hivetest.Logger(t)
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	client, err := etcd.NewClient(log, etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })

	prefix, socket := wire.CachePrefix(wire.Endpoints, "source"), filepath.Join(t.TempDir(), "readers.sock")
	put := func(run, number int) clientv3.Op {
		prefixOf := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(number)}), 32)
		stamp := Stamp{Run: run, Number: number, Due: time.Now().Add(-time.Minute)}
		value, err := wire.MarshalEndpoint(&wire.Endpoint{Prefix: prefixOf, Identity: 300, Pod: stamp.Pod()})
		require.NoError(t, err)
		return clientv3.OpPut(prefix+wire.EndpointKey(prefixOf), string(value))
	}
	commit := func(ops ...clientv3.Op) {
		_, err := client.Etcd().Txn(t.Context()).Then(ops...).Commit()
		require.NoError(t, err)
	}
	commit(put(2, 9)) // before anybody watches

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- RunReaders(ctx, log, ReadersConfig{Endpoint: server.URL(), Prefix: prefix, Readers: 3, Socket: socket, Run: 2})
	}()
	status := func(right func(ReadersStatus) bool) (last ReadersStatus) {
		require.Eventually(t, func() bool {
			var err error
			last, err = AskReaders(t.Context(), socket)
			return err == nil && right(last)
		}, 10*time.Second, time.Millisecond)
		return last
	}
	status(func(s ReadersStatus) bool { return s.Watching == 3 })
	commit(put(1, 1))
	commit(put(2, 1), put(2, 2))
	commit(put(2, 3))
	got := status(func(s ReadersStatus) bool { return s.Delivered == 3*3 })
	require.Equal(t, 3, got.Least)
	require.Equal(t, 3*(1+2+3), got.Sum)
	require.GreaterOrEqual(t, got.Messages, 3)
	require.LessOrEqual(t, got.Messages, 3*2)
	require.Positive(t, got.Bytes)
	latencies := hdrhistogram.Import(got.Latencies)
	require.EqualValues(t, 9, latencies.TotalCount())
	require.GreaterOrEqual(t, latencies.Min(), time.Minute.Microseconds()*99/100)
	require.EqualValues(t, 6, hdrhistogram.Import(got.Commits).TotalCount(), "the last event of each commit")
	cancel()
	require.NoError(t, <-ended)
}
