// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package operator compiles the exporter and the in-cluster cache into cilium-operator:
//
//	h := hive.New(operatorcmd.Operator, operator.Cell)
//	operatorcmd.Execute(operatorcmd.NewOperatorCmd(h))
//
// Neither runs unless its flag says so. Kubernetes is read once for both, by each replica,
// so that one that is elected has what it needs.
//
//	config.go  flags
//	cell.go    the wiring, and which replica runs what
package operator

import (
	"github.com/cilium/cilium/operator/cmd"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// Cell is for a hive with upstream's Operator, whose client of Kubernetes, cluster's name
// and ID, and leader election it takes.
var Cell = cell.Module(
	"waggle",
	"Exporter and in-cluster cache",

	cell.Config(DefaultConfig),
	cell.Config(inclustercache.DefaultConfig), // --incluster-cache-resources and others
	cell.Invoke(validate),

	cell.Provide(
		Config.reads,
		// As in the agent, whose own tables have some of these names.
		func() state.TablePrefix { return "waggle-" },
		// The operator has the flag already.
		func(host *option.DaemonConfig) kubernetes.Config {
			return kubernetes.Config{EnableCiliumEndpointSlice: host.EnableCiliumEndpointSlice}
		},
		// Pods, where what the exporter filters by says that they matter.
		func(cfg Config, policy filter.WorkloadPolicy, region export.Config) kubernetes.PodMetadata {
			return kubernetes.PodMetadata(cfg.Export && policy.ReadsPods(region.ClusterRegion))
		},
	),
	state.Cell,       // the tables
	kubernetes.Parts, // Kubernetes → tables

	cell.Decorate(exporterLife, exporter),
	cell.Decorate(cacheLife, cache),
)

// exporter and cache have an etcd each, which is private to them.
var (
	exporter = cell.Module(
		"exporter",
		"State to the kvstore that other clusters read",

		cell.ProvidePrivate(Config.exportStore),
		etcd.PrivateCell,
		export.Cell,
		export.HeartbeatCell,
		metrics.Exporter,
	)

	cache = cell.Module(
		"cache",
		"State to the kvstore that the cluster reads itself",

		cell.ProvidePrivate(Config.cacheStore, Config.server, func() etcd.FlagPrefix { return cachePrefix }),
		inclustercache.PrivateServerCell,
		etcd.PrivateOwnServerCell,
		etcd.PrivateCell,
		export.PrivateLocalCell,
		export.HeartbeatCell,
		metrics.InClusterCacheAlone, // the exporter has a Writer as well
	)
)

// never is the life of what isn't to run.
func never() cell.Lifecycle { return &cell.DefaultLifecycle{} }

// exporterLife has one replica write.
func exporterLife(cfg Config, leader *cmd.LeaderLifecycle) cell.Lifecycle {
	if !cfg.Export {
		return never()
	}
	return leader
}

// cacheLife has each replica fill its own etcd, and one replica an etcd of all.
func cacheLife(cfg Config, all cell.Lifecycle, leader *cmd.LeaderLifecycle) cell.Lifecycle {
	switch {
	case !cfg.Cache:
		return never()
	case cfg.external():
		return leader
	}
	return all
}

// validate says at the start what can't be, on each replica.
func validate(
	lc cell.Lifecycle, cfg Config, cluster wire.ClusterInfo, policy filter.WorkloadPolicy, store kvstore.Client,
) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		if err := cfg.validate(); err != nil {
			return err
		}
		if cfg.Export {
			if store.IsEnabled() {
				return ErrTwoWriters
			}
			if err := wire.ValidateLocalCluster(cluster); err != nil {
				return err
			}
			return policy.Validate()
		}
		if cfg.Cache {
			return wire.ValidateCacheCluster(cluster)
		}
		return nil
	}})
}
