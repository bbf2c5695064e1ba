// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"golang.org/x/sync/semaphore"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell replicates the remote clusters that the hive's remote.Cell finds.
var Cell = cell.Module(
	"kvstoremesh",
	"Replication of remote clusters into the local etcd",

	cell.Config(DefaultConfig),
	cell.Provide(
		newKVStoreMesh,
		(*kvStoreMesh).factory,
		newReadiness,
	),
	// Both need to know which clusters are configured.
	cell.Invoke(
		(*Readiness).register,
		registerOrphans,
	),
	// What an earlier process wrote of clusters that are away stays.
	cell.Invoke(registerWarmStart),
	// --enable-heartbeat
	cell.Invoke(registerHeartbeat),
	// --cluster-region, if it is missing
	cell.Invoke(registerRegion),
	// filter/explain, filter/status.
	cell.Provide(filterCommands),
)

// kvStoreMesh replicates all remote clusters.
type kvStoreMesh struct {
	log    *slog.Logger
	config Config
	local  wire.ClusterInfo
	client *etcd.Client
	writer *etcd.Writer
	state  *state.Writer
	// configs is where the clusters' configs are. The prefix is shared with the
	// local cluster's exporter, so that it is only ever told of single keys.
	configs      *etcd.Scope
	rawConfigs   rawConfigs
	lists        *semaphore.Weighted
	relistJitter time.Duration // 0 is the Reader's default
	owners       owners
}

// concurrentLists bounds the pages that are in memory at a time: the Writer is
// the bottleneck of a bootstrap, so that while one page waits for it and one is
// on its way, more would only fill memory.
const concurrentLists = 2

func newKVStoreMesh(log *slog.Logger, config Config, local wire.ClusterInfo,
	client *etcd.Client, writer *etcd.Writer, stateWriter *state.Writer) *kvStoreMesh {
	m := &kvStoreMesh{log: log, config: config, local: local, client: client, writer: writer, state: stateWriter,
		lists: semaphore.NewWeighted(concurrentLists)}
	m.configs = writer.Scope(etcd.ScopeConfig{Prefix: wire.ClusterConfigPrefix, Lease: true, Refill: m.refillConfigs})
	return m
}

// factory gives what makes the Handler of each cluster.
func (m *kvStoreMesh) factory() remote.Factory {
	return func(name string) remote.Handler { return newCluster(m, name) }
}

func registerHeartbeat(config Config, jobs job.Group, writer *etcd.Writer) {
	if config.EnableHeartbeat {
		jobs.Add(export.NewHeartbeat(writer).Job())
	}
}

// registerRegion says once that there is no region, with which the scopes of remote
// endpoints would mean something.
func registerRegion(log *slog.Logger, config Config, mesh *remote.Mesh, lc cell.Lifecycle) {
	if config.ClusterRegion != "" || !mesh.Enabled() {
		return
	}
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		log.Info("This cluster has no region: remote endpoints of every scope are taken", "flag", "--"+FlagClusterRegion)
		return nil
	}})
}

// tableOf is the table whose rows say how each cluster is.
type tableOf = statedb.Table[*state.RemoteCluster]
