// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// exportMetrics are what an exporter's filters do, and skippedMetrics those of a
// KVStoreMesh.
var (
	exportMetrics = cell.Provide(func(db *statedb.DB, exports statedb.Table[*state.Export], workloads statedb.Table[*state.Workload]) metricsOut {
		return collectorOut(&exportCollector{db, exports, workloads})
	})
	skippedMetrics = cell.Provide(func(db *statedb.DB, clusters statedb.Table[*state.RemoteCluster]) metricsOut {
		return collectorOut(&skippedCollector{db, clusters})
	})
)

var (
	exportEntries = prometheus.NewDesc("waggle_export_entries",
		"What the cluster has, by what becomes of it: pushed to other clusters, on demand, or kept since its namespace isn't global",
		[]string{"resource", "fate"}, nil)
	exportMalformed = prometheus.NewDesc("waggle_export_malformed_settings",
		"Pods with malformed settings, which count as absent", nil, nil)
	skippedEntries = prometheus.NewDesc("waggle_kvstoremesh_skipped_entries",
		"What a remote cluster has and isn't taken, being regional in another region",
		// The label by which upstream's metrics name the remote cluster.
		[]string{metrics.LabelTargetCluster, "resource"}, nil)
)

// exportCollector reads the tables when it is asked, with a walk over the pods that
// say anything.
type exportCollector struct {
	db        *statedb.DB
	exports   statedb.Table[*state.Export]
	workloads statedb.Table[*state.Workload]
}

// Describe implements prometheus.Collector.
func (c *exportCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- exportEntries
	ch <- exportMalformed
}

// Collect implements prometheus.Collector.
func (c *exportCollector) Collect(ch chan<- prometheus.Metric) {
	txn := c.db.ReadTxn()
	for row := range c.exports.All(txn) {
		for fate, count := range map[filter.Fate]int{filter.Pushed: row.Pushed, filter.OnDemand: row.OnDemand, filter.Kept: row.NotGlobal} {
			ch <- prometheus.MustNewConstMetric(exportEntries, prometheus.GaugeValue, float64(count), string(row.Resource), fate.String())
		}
	}
	malformed := 0
	for range export.Malformed(txn, c.workloads) {
		malformed++
	}
	ch <- prometheus.MustNewConstMetric(exportMalformed, prometheus.GaugeValue, float64(malformed))
}

// skippedCollector reads the table of remote clusters when it is asked.
type skippedCollector struct {
	db       *statedb.DB
	clusters statedb.Table[*state.RemoteCluster]
}

// Describe implements prometheus.Collector.
func (c *skippedCollector) Describe(ch chan<- *prometheus.Desc) { ch <- skippedEntries }

// Collect implements prometheus.Collector. A cluster without a region, or ours, skips
// nothing and says 0 all the same.
func (c *skippedCollector) Collect(ch chan<- prometheus.Metric) {
	for row := range c.clusters.All(c.db.ReadTxn()) {
		for resource, of := range row.Resources {
			if of.Enabled {
				ch <- prometheus.MustNewConstMetric(skippedEntries, prometheus.GaugeValue, float64(of.Skipped), row.Name, string(resource))
			}
		}
	}
}
