// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package cells says what Waggle's hives are made of. It reads like a table of
// contents: a program is its list of cells, and nothing else composes them. Those that
// begin at Kubernetes are in kubernetes.go. What a build tag leaves out has two files, for
// instance kubernetes.go and kubernetes_none.go.
package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/kvstoremesh"
	"github.com/waggle-mesh/waggle/kvstoremesh/readthrough"
)

// KVStoreMesh is the hive of "waggle kvstoremesh": remote etcds → local etcd.
var KVStoreMesh = cell.Module(
	"kvstoremesh-hive",
	"Remote kvstores to the local one",

	cell.Config(wire.DefaultClusterInfo),
	cell.Invoke(validateCluster),

	etcd.Cell, // client and Writer of the local etcd
	KVStoreMeshParts,
)

// KVStoreMeshParts is KVStoreMesh without the flags and the etcd, for a host's hive in
// which they outlive it: it works while this replica is the leader.
var KVStoreMeshParts = cell.Group(
	state.Cell,         // the table of remote clusters
	remote.Cell,        // the remote clusters' life
	remote.Metrics(""), // upstream's metrics of it
	kvstoremesh.Cell,   // cilium/state/… there → cilium/cache/… here
	readthrough.Cell,   // what isn't pushed, looked up there for the agents here
	status.Cell,        // how all of it is
)

// Agent is the hive of "waggle agent": this cluster and remote ones → tables → BPF
// ipcache map.
var Agent = cell.Module(
	"agent",
	"Kubernetes or its cache and remote clusters to the ipcache map",

	AgentParts,
	kubernetesClient, // the API server, with --datastore=kubernetes
)

// AgentParts is Agent without the client that a host's hive, or a test with a fake
// client, brings along.
var AgentParts = cell.Group(
	AgentTables, // this cluster and remote ones → tables
	datapath,    // tables → the map, by build tag; and what the map misses → tables
)

// AgentHostTables is AgentTables without the flags, and without the metrics, that the
// hive of upstream's agent has itself.
var AgentHostTables = cell.Group(
	state.Cell,                    // the tables
	inclustercache.DatastoreParts, // this cluster: --datastore=none|kubernetes|etcd
	fromKubernetesParts,           // Kubernetes → tables, or nothing
	cell.Provide(func() wire.MCSAPIConfig { return wire.DefaultMCSAPIConfig }),
	remote.Parts, // the remote clusters' life
	remote.SharedConnections,
	ingest.Parts, // etcd → tables
	status.Cell,  // how all of it is
)

// AgentTables is AgentParts without what reads the tables.
var AgentTables = cell.Group(
	cell.Config(wire.DefaultClusterInfo),
	cell.Config(etcd.DefaultConfig), // the in-cluster cache, with --datastore=etcd; and the tuning of all clients
	state.Cell,                      // the tables

	datastore,      // this cluster: --datastore=kubernetes|etcd|none, by build tag
	fromKubernetes, // Kubernetes → tables, or nothing
	cell.Provide(func() wire.MCSAPIConfig { return wire.DefaultMCSAPIConfig }), // no agent reads its own exports

	remote.Cell,                   // the remote clusters' life
	remote.Metrics("clustermesh"), // upstream's metrics of it
	remote.SharedConnections,      // one to each etcd, whatever clusters it has
	ingest.Cell,                   // etcd → tables
	status.Cell,                   // how all of it is
)

// validateCluster refuses an impossible cluster name or ID when a hive starts,
// and names the flag.
func validateCluster(lc cell.Lifecycle, cluster wire.ClusterInfo) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error { return wire.ValidateLocalCluster(cluster) }})
}
