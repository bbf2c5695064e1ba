// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// meshHive is a hive with what the cell needs and nothing optional.
func meshHive(directory string, mesh **Mesh) *hive.Hive {
	h := hive.New(
		state.Cell,
		Cell,
		cell.Provide(
			func() wire.ClusterInfo { return wire.DefaultClusterInfo },
			func() etcd.Config { return etcd.DefaultConfig },
			func() Factory { return nil },
		),
		cell.Invoke(func(m *Mesh) { *mesh = m }),
	)
	h.Viper().Set("clustermesh-config", directory)
	return h
}

func TestNoMesh(t *testing.T) {
	var mesh *Mesh
	h, log := meshHive("", &mesh), hivetest.Logger(t)
	require.NoError(t, h.Start(log, context.Background()))
	require.False(t, mesh.Enabled())
	require.Empty(t, mesh.Clusters())
	require.NoError(t, h.Stop(log, context.Background()))
}

func TestNoDirectory(t *testing.T) {
	var mesh *Mesh
	missing := filepath.Join(t.TempDir(), "missing")
	h, log := meshHive(missing, &mesh), hivetest.Logger(t)
	require.ErrorContains(t, h.Start(log, context.Background()), missing)
	require.NoError(t, h.Stop(log, context.Background()))
}

// TestDialer: a hive's own dialer finds addresses that no resolver knows.
func TestDialer(t *testing.T) {
	s := startSource(t, etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	f := newFixture(t, cell.Provide(func() Dialer {
		return func(ctx context.Context, address string) (net.Conn, error) {
			if address == "red.mesh.example:2379" {
				address = strings.TrimPrefix(s.url(), "http://")
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}))
	f.add("red", config("http://red.mesh.example:2379")).expect(t, "run")
}

func TestMetrics(t *testing.T) {
	var metrics common.Metrics
	f := newFixture(t, Metrics("clustermesh"), cell.Invoke(func(m common.Metrics) { metrics = m }))
	s := startSource(t, etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	f.healthy("red")
	require.Equal(t, 1.0, metrics.TotalRemoteClusters.Get())
	require.Equal(t, 1.0, metrics.ReadinessStatus.WithLabelValues("red").Get())
	require.Equal(t, 0.0, metrics.TotalFailures.WithLabelValues("red").Get())

	s.close()
	f.row("red", "the loss of the connection", func(r *state.RemoteCluster) bool { return !r.Connected })
	require.Equal(t, 0.0, metrics.ReadinessStatus.WithLabelValues("red").Get())
	require.Equal(t, 1.0, metrics.TotalFailures.WithLabelValues("red").Get())
	require.Positive(t, metrics.LastFailureTimestamp.WithLabelValues("red").Get())

	f.clock.Step(cacheTTL)
	red.expect(t, "ended")
	red.expect(t, "revoke")
	f.removeFile("red")
	red.expect(t, "remove")
	require.Eventually(t, func() bool {
		return metrics.TotalRemoteClusters.Get() == 0 && metrics.TotalCacheRevocations.WithLabelValues("red").Get() == 0
	}, waitLimit, waitLimit/10000)
}
