// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"strings"
	"time"

	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// KVStore has upstream's metrics of what is read from and written to a kvstore. It is
// for hives without upstream's store.Cell, which has them already.
var KVStore = metrics.Metric(store.MetricsProvider)

// kvstoreInterval is how old those metrics may be. With 510 clusters a round takes some
// 2 ms.
const kvstoreInterval = 2 * time.Second

// kvstoreSync keeps upstream's metrics of kvstores up to date, if the hive has them.
var kvstoreSync = cell.Module(
	"kvstore-sync-metrics",
	"How far kvstores are read and written as metrics",

	cell.Invoke(func(p kvstoreParams) {
		if p.Metrics == nil || p.Writer == nil && !bool(p.Reads) {
			return // there never is anything to tell
		}
		m := &kvstoreMetrics{kvstoreParams: p, errors: make(map[scopeLabels]uint64)}
		p.Jobs.Add(job.Timer("update", func(context.Context) error { m.update(); return nil }, kvstoreInterval))
	}),
)

type kvstoreParams struct {
	cell.In

	Jobs     job.Group
	DB       *statedb.DB
	Clusters statedb.Table[*state.RemoteCluster]
	Cluster  wire.ClusterInfo
	Metrics  *store.Metrics `optional:"true"`
	Writer   *etcd.Writer   `optional:"true"`
	// Reads: remote clusters are configured.
	Reads remote.Configured `optional:"true"`
}

// scopeLabels are a resource in upstream's words, and whose it is.
type scopeLabels struct{ scope, cluster string }

type kvstoreMetrics struct {
	kvstoreParams
	// errors are those that were counted. It has the labels that there are values of, as
	// read has those of clusters that are read.
	errors map[scopeLabels]uint64
	read   map[scopeLabels]struct{}
}

// update is called by the one job.
func (m *kvstoreMetrics) update() {
	if m.Writer != nil {
		m.updateWritten()
	}
	read := make(map[scopeLabels]struct{})
	for row := range m.Clusters.All(m.DB.ReadTxn()) {
		for resource, of := range row.Resources {
			if of.Enabled {
				l := scopeLabels{scopeOf(wire.StatePrefix(resource, row.Name)), row.Name}
				read[l] = struct{}{}
				m.Metrics.KVStoreInitialSyncCompleted.WithLabelValues(l.scope, l.cluster, "read").Set(one(of.Synced))
			}
		}
	}
	for l := range m.read {
		if _, ok := read[l]; !ok {
			remove(m.Metrics.KVStoreInitialSyncCompleted, l.scope, l.cluster, "read")
		}
	}
	m.read = read
}

func (m *kvstoreMetrics) updateWritten() {
	present := make(map[scopeLabels]struct{})
	for _, scope := range m.Writer.ScopeStats() {
		if !scope.Loaded {
			continue // single keys, and canaries
		}
		l := scopeLabels{scopeOf(scope.Prefix), m.sourceOf(scope.Prefix)}
		present[l] = struct{}{}
		m.Metrics.KVStoreSyncQueueSize.WithLabelValues(l.scope, l.cluster).Set(float64(scope.Pending))
		m.Metrics.KVStoreInitialSyncCompleted.WithLabelValues(l.scope, l.cluster, "write").Set(one(scope.Complete))
		// A cluster that was removed and is there again has a new Scope.
		counted := m.errors[l]
		if scope.Failures < counted {
			counted = 0
		}
		m.Metrics.KVStoreSyncErrors.WithLabelValues(l.scope, l.cluster).Add(float64(scope.Failures - counted))
		m.errors[l] = scope.Failures
	}
	for l := range m.errors {
		if _, ok := present[l]; !ok {
			delete(m.errors, l)
			remove(m.Metrics.KVStoreSyncQueueSize, l.scope, l.cluster)
			remove(m.Metrics.KVStoreInitialSyncCompleted, l.scope, l.cluster, "write")
		}
	}
}

// sourceOf is the cluster whose state is below a prefix.
func (m *kvstoreMetrics) sourceOf(prefix string) string {
	below, cached := strings.CutPrefix(prefix, wire.CacheRoot)
	if parts := strings.Split(below, "/"); cached && len(parts) > 2 {
		return parts[2] // RESOURCE/v1/CLUSTER/
	}
	return m.Cluster.Name
}

func remove(vec metric.Vec[metric.Gauge], labels ...string) {
	if vec, ok := vec.(metric.DeletableVec[metric.Gauge]); ok {
		vec.DeleteLabelValues(labels...)
	}
}
