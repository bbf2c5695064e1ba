// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestHeartbeatBeats follows the key over a few beats of a clock that is sped up.
func TestHeartbeatBeats(t *testing.T) {
	log := hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	defer server.Close()
	client, err := etcd.NewClient(log, etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	defer client.Close()

	writer := etcd.NewWriter(log, client)
	heartbeat := NewHeartbeat(writer)
	require.Equal(t, time.Minute, heartbeat.interval)
	heartbeat.interval = time.Millisecond
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	heartbeat.now = func() time.Time { clock = clock.Add(time.Second); return clock }

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer cancel()
	jobs.Go(func() { _ = writer.Run(ctx) })
	jobs.Go(func() { _ = heartbeat.run(ctx, &healthRecorder{}) })

	var beats []time.Time
	for resp := range client.Etcd().Watch(ctx, wire.HeartbeatKey, clientv3.WithRev(1)) {
		require.NoError(t, resp.Err())
		for _, event := range resp.Events {
			require.NotZero(t, event.Kv.Lease)
			beat, err := time.Parse(time.RFC3339, string(event.Kv.Value))
			require.NoError(t, err)
			beats = append(beats, beat)
		}
		if len(beats) >= 3 {
			break
		}
	}
	require.GreaterOrEqual(t, len(beats), 3)
	require.True(t, beats[2].After(beats[1]) && beats[1].After(beats[0]))
}
