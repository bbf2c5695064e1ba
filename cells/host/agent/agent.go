// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package agent has the cells that make upstream's cilium-agent one of ours as well:
// they are compiled into its hive, beside its own.
//
//	agent.go   the cells
//	config.go  what they take from the flags of cilium-agent, and the flags they add
//	unused.go  which of these mean nothing
package agent

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/bridge"
	"github.com/waggle-mesh/waggle/bridge/standin"
	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/cells/state"
)

// Cells are for the hive of upstream's agent (daemon/cmd.Agent). With none of our flags
// set they leave it as it is.
var Cells = cell.Module(
	moduleID,
	"State of clusters in tables and from there to the agent",

	// --datastore, --clustermesh-ingest and others of ours.
	cell.Config(defaultConfig),
	// What is asked for, for all others.
	cell.Provide(options, statusHost),
	// cilium-agent has tables named "services" and others of its own.
	cell.Provide(func() state.TablePrefix { return tablePrefix }),
	// The configuration of our cells, as far as cilium-agent has the flags.
	cell.Provide(etcdConfig, datastoreConfig, kubernetesConfig, ingestConfig, mapConfig, dialer),
	cell.Invoke(validateOnDemand),
	// What of that means nothing.
	cell.Invoke(reportUnused),

	// The directory of remote clusters is read by one of both, and counted by one.
	cell.Provide(meshConfig, meshMetrics),
	cells.AgentHostTables,
	// The tables to the agent's own ipcache and nodes, and to its ClusterMesh.
	bridge.Cell,
	// The tables instead of the agent's own watches, with --datastore=etcd.
	standin.Cell,

	// What the agent's map misses, to the tables: the answers come by the bridge.
	cells.AgentHostMisses,

	// What all of them say, in the agent's registry.
	metrics.Agent,
)

// moduleID is the module that has all of our cells.
const moduleID = "waggle"

// tablePrefix is what `db/show` has before the names of our tables.
const tablePrefix state.TablePrefix = "waggle-"
