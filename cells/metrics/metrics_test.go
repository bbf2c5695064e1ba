// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"log/slog"
	"testing"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells"
	wagglemetrics "github.com/waggle-mesh/waggle/cells/metrics"
)

// TestAgentRegistry gives the metrics of each program to the registry of upstream's
// agent, which is made before anything else and knows each collector by its name.
func TestAgentRegistry(t *testing.T) {
	for name, program := range map[string]cell.Cell{
		"clustermesh":     cell.Group(cells.Exporter, wagglemetrics.Exporter),
		"kvstoremesh":     cell.Group(cells.KVStoreMesh, wagglemetrics.KVStoreMesh),
		"incluster-cache": cell.Group(cells.InClusterCache, wagglemetrics.InClusterCache),
		"agent":           cell.Group(cells.Agent, wagglemetrics.Agent),
	} {
		t.Run(name, func(t *testing.T) {
			var registry *metrics.Registry
			h := hive.New(
				cell.Provide(func() *option.DaemonConfig { return &option.DaemonConfig{} }),
				metrics.Cell,
				cell.Invoke(func(r *metrics.Registry, all struct {
					cell.In
					Metrics []metric.WithMetadata `group:"hive-metrics"`
				}) {
					registry = r
					seen := make(map[string]bool)
					for _, m := range all.Metrics {
						name := m.Opts().GetConfigName()
						assert.NotEmpty(t, name)
						assert.False(t, seen[name], "the registry would leave out one of those named %q", name)
						seen[name] = true
					}
				}),
				program,
			)
			require.NoError(t, h.Populate(hivetest.Logger(t, hivetest.LogLevel(slog.LevelError))))
			families, err := registry.Gather()
			require.NoError(t, err)
			assert.NotEmpty(t, families)
		})
	}
}
