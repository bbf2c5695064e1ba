// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package metrics gives the hives of package cells their Prometheus metrics, for the
// registry that the host of a hive has: the agent's, the operator's, the
// clustermesh-apiserver's, or that of cmd/waggle.
//
//	cells.go      which program has which metrics
//	source.go     a collector that is registered before what it reads exists
//	filters.go    what an exporter's filters do, and those of a KVStoreMesh
//	etcd.go       what is written to the local etcd
//	kvstore.go    upstream's metrics of what is read and written
//	clusters.go   what is read of remote clusters, and the map that it gets into
//	cache.go      the embedded etcd of an in-cluster cache
//	datastore.go  where an agent has the state of its cluster from
//
// Where upstream has a metric of the same meaning ours has its name; the others begin
// with waggle_. docs/metrics.md lists all of them.
package metrics

import (
	"github.com/cilium/hive/cell"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/kvstoremesh/readthrough"
)

// The metrics of each program, to stand beside the cells of that name in package cells.
// A hive without upstream's store.Cell has [KVStore] as well. They ask for nothing that the host's registry could need to be made itself.
var (
	// Exporter is for cells.Exporter or its parts.
	Exporter = cell.Group(writer, kvstoreSync, exports)

	// KVStoreMesh is for cells.KVStoreMesh.
	KVStoreMesh = cell.Group(writer, kvstoreSync, clusters, skipped, readThrough)

	// InClusterCache is for cells.InClusterCache or its parts.
	InClusterCache = cell.Group(writer, kvstoreSync, cache)

	// InClusterCacheAlone is for those beside cells.Exporter in one hive: a registry has
	// room for the metrics of one Writer, and what the cache's does is among its own.
	InClusterCacheAlone = cell.Group(cache)

	// Agent is for cells.Agent or its parts.
	Agent = cell.Group(kvstoreSync, clusters, datastore, ipcache, onDemand)
)

// readThrough is what a KVStoreMesh's read-through has answered.
var readThrough = cell.Provide(func(m *readthrough.Metrics) out {
	return provide("waggle_kvstoremesh_ondemand", m)
})

// onDemand is what an agent's on-demand resolution does; there is nothing while it is
// off, or left out of the program.
var onDemand = cell.Provide(func(p struct {
	cell.In
	Metrics *ondemand.Metrics `optional:"true"`
}) out {
	var c prometheus.Collector
	if p.Metrics != nil {
		c = p.Metrics
	}
	return provide("waggle_ondemand", c)
})
