// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package main

import (
	hostmetrics "github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells"
	wagglemetrics "github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/clustermesh/export"
)

// ownCluster is where an agent has its own cluster's state from.
const ownCluster = `Reads its own cluster from Kubernetes, or from the in-cluster cache with
--datastore=etcd; it is one or the other, for as long as it runs. Without either
it has remote clusters alone.`

// What begins at Kubernetes.
var (
	exporters = []program{
		{
			name: "clustermesh", short: "Export the cluster's state from Kubernetes to its etcd",
			long: `Reads nodes, identities, endpoints, services and namespaces of a cluster from its
API server, or from a directory of manifests, and writes them to the cluster's
etcd in Cilium's kvstore schema, for remote clusters to read.`,
			cells:     cell.Group(cells.Exporter, wagglemetrics.Exporter),
			namespace: hostmetrics.CiliumClusterMeshAPIServerNamespace,
			ready:     readiness(func(e *export.Exporter) func() bool { return isClosed(e.Synced()) }),
		},
	}
	caches = []program{
		{
			name: "incluster-cache", short: "Serve the cluster's state to its own agents from an etcd",
			long: `Reads nodes, identities, endpoints and services of a cluster from its API server,
or from a directory of manifests, and offers them to the cluster's agents in an
etcd of its own: one watch of the API server for each replica of this program,
instead of one for each agent. ` + cacheStore + `
See docs/incluster-cache.md.`,
			cells: cell.Group(cells.InClusterCache, wagglemetrics.InClusterCache),
			ready: readiness(func(e *export.Exporter) func() bool { return isClosed(e.Synced()) }),
		},
	}
)
