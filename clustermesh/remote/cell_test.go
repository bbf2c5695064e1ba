// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
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

func TestFlagsAreChecked(t *testing.T) {
	var mesh *Mesh
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	h, log := meshHive(file, &mesh), hivetest.Logger(t)
	require.ErrorContains(t, h.Start(log, context.Background()), "--clustermesh-config")
	require.NoError(t, h.Stop(log, context.Background()))

	h = meshHive(t.TempDir(), &mesh)
	h.Viper().Set("clustermesh-cache-ttl", "-1s")
	require.ErrorContains(t, h.Start(log, context.Background()), "--clustermesh-cache-ttl")
}

func TestMetrics(t *testing.T) {
	var metrics ClusterMetrics
	f := newFixture(t, Metrics("clustermesh"), cell.Invoke(func(m ClusterMetrics) { metrics = m }))
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	f.healthy("red")
	require.Equal(t, 1.0, metrics.TotalRemoteClusters.Get())
	require.Equal(t, 1.0, metrics.ReadinessStatus.WithLabelValues("red").Get())
	require.Equal(t, 0.0, metrics.TotalFailures.WithLabelValues("red").Get())

	f.lose(s, "red")
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

// TestUpstreams: flags, their defaults and the names of metrics are upstream's, from which
// both also convert.
func TestUpstreams(t *testing.T) {
	require.Equal(t, Config{}, Config(common.DefaultConfig))
	var ours, upstream pflag.FlagSet
	Config{}.Flags(&ours)
	common.DefaultConfig.Flags(&upstream)
	flags := func(set *pflag.FlagSet) (all []string) {
		set.VisitAll(func(f *pflag.Flag) { all = append(all, f.Name+" "+f.Value.Type()+" "+f.DefValue) })
		return all
	}
	require.Equal(t, flags(&upstream), flags(&ours))

	opts := func(m ClusterMetrics) (all []metric.Opts) {
		for _, m := range []metric.WithMetadata{m.TotalRemoteClusters, m.LastFailureTimestamp, m.ReadinessStatus, m.TotalFailures, m.TotalCacheRevocations} {
			opts := m.Opts()
			opts.Help = "in our words"
			all = append(all, opts)
		}
		return all
	}
	require.Equal(t, opts(ClusterMetrics(common.MetricsProvider("clustermesh")())), opts(newClusterMetrics("clustermesh")))
}
