// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// Exporter is the hive of "waggle clustermesh": Kubernetes → etcd.
var Exporter = cell.Module(
	"exporter",
	"Kubernetes to the kvstore of the cluster",

	cell.Config(wire.DefaultClusterInfo),  // --cluster-name, --cluster-id, --max-connected-clusters
	cell.Config(wire.DefaultMCSAPIConfig), // --clustermesh-enable-mcs-api
	cell.Invoke(validateCluster),

	kubernetes.ClientCell, // the API server, unless manifests are read
	ExporterParts,
)

// ExporterParts is Exporter without the flags and the client that a host's hive,
// or a test with a fake client, brings along.
var ExporterParts = cell.Group(
	kubernetes.Cell,           // Kubernetes → tables
	cell.Provide(podMetadata), // of pods only what the filters ask for, and only if they do
	cell.Invoke(validateWorkloadPolicy),
	state.Cell,           // the tables
	etcd.Cell,            // client and Writer of the local etcd
	export.Cell,          // tables → cilium/state/…
	export.HeartbeatCell, // cilium/.heartbeat
	status.Cell,          // how all of it is
)

// InClusterCache is the hive of "waggle incluster-cache": Kubernetes → an etcd of
// its own, which the cluster's agents read.
var InClusterCache = cell.Module(
	"incluster-cache-hive",
	"Kubernetes to the etcd that the agents of the cluster read",

	cell.Config(wire.DefaultClusterInfo),
	cell.Provide(func() wire.MCSAPIConfig { return wire.DefaultMCSAPIConfig }), // off
	cell.Invoke(validateCacheCluster),

	kubernetes.ClientCell, // the API server, unless manifests are read
	kubernetes.PatientCell,
	InClusterCacheParts,
)

// InClusterCacheParts is InClusterCache without the flags and the client that a
// host's hive, or a test with a fake client, brings along.
var InClusterCacheParts = cell.Group(
	inclustercache.ServerCell, // what is offered; claims the etcd before anything is written
	kubernetes.Cell,           // Kubernetes → tables
	state.Cell,                // the tables
	etcd.OwnServerCell,        // its etcd, unless --kvstore-opt names another
	etcd.Cell,                 // client and Writer of that
	export.LocalCell,          // tables → cilium/state/…, unfiltered
	export.HeartbeatCell,      // cilium/.heartbeat
	status.Cell,               // how all of it is
)

// What an agent has of Kubernetes.
var (
	kubernetesClient    = kubernetes.ClientCell
	fromKubernetes      = kubernetes.Cell
	fromKubernetesParts = kubernetes.Parts
	datastore           = inclustercache.DatastoreCell
)

// validateCacheCluster is validateCluster for a cluster that may be in no mesh.
func validateCacheCluster(lc cell.Lifecycle, cluster wire.ClusterInfo) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error { return wire.ValidateCacheCluster(cluster) }})
}

// validateWorkloadPolicy refuses a sync mode that there isn't.
func validateWorkloadPolicy(lc cell.Lifecycle, policy filter.WorkloadPolicy) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error { return policy.Validate() }})
}

// podMetadata has pods read where what they say makes a difference.
func podMetadata(policy filter.WorkloadPolicy, config export.Config) kubernetes.PodMetadata {
	return kubernetes.PodMetadata(policy.ReadsPods(config.ClusterRegion))
}
