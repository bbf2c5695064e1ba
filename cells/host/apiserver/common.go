// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"github.com/cilium/cilium/clustermesh-apiserver/health"
	"github.com/cilium/cilium/clustermesh-apiserver/metrics"
	upstream "github.com/cilium/cilium/clustermesh-apiserver/option"
	"github.com/cilium/cilium/pkg/controller"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/gops"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/cilium/pkg/pprof"
	"github.com/cilium/cilium/pkg/version"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/shell"

	ours "github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// infrastructure is what all hives of the program have, with the ports at which
// upstream has profiles and gops.
func infrastructure(pprofPort, gopsPort uint16) cell.Cell {
	return cell.Group(
		cell.Config(upstream.DefaultLegacyClusterMeshConfig), // --debug, --log-driver, --log-opt

		metrics.Cell,               // --prometheus-serve-addr
		health.HealthAPIServerCell, // --health-port
		pprof.Cell(pprof.Config{PprofAddress: upstream.PprofAddress, PprofPort: pprofPort}),
		gops.Cell(defaults.EnableGops, gopsPort),

		shell.ServerCell(defaults.ShellSockPath), // --shell-sock-path
	)
}

// common is what both hives have that upstream has as well.
var common = cell.Group(
	cell.Config(wire.DefaultClusterInfo), // --cluster-name, --cluster-id, --max-connected-clusters
	cell.Invoke(validateCluster),

	controller.Cell, // --controller-group-metrics
	ours.KVStore,    // upstream's metrics of kvstores
	unusedFlags,
)

// validateCluster refuses an impossible cluster name or ID when a hive starts.
func validateCluster(lc cell.Lifecycle, cluster wire.ClusterInfo) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error { return wire.ValidateLocalCluster(cluster) }})
}

// setUp sets the log up and says what was set, as upstream's commands do.
func setUp(h *hive.Hive, name string) {
	option.Config.SetupLogging(h.Viper(), name)
	log := logging.DefaultSlogLogger.With("subsys", name) // set up above
	option.Config.Populate(log, h.Viper())
	option.LogRegisteredSlogOptions(h.Viper(), log)
	log.Info("Waggle's in-cluster cache", "version", version.Version)
}
