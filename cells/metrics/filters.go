// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

var (
	exportEntries = gauge("waggle_export_entries",
		"What the cluster has, by what becomes of it: pushed to other clusters, on demand, or kept since its namespace isn't global",
		"resource", "fate")
	exportMalformed = gauge("waggle_export_malformed_settings",
		"Pods with malformed settings, which count as absent")
	skippedEntries = gauge("waggle_kvstoremesh_skipped_entries",
		"What a remote cluster has and isn't taken, being regional in another region",
		// The label by which upstream's metrics name the remote cluster.
		metrics.LabelTargetCluster, "resource")
)

// exports is what an exporter's filters do. It walks over the pods that say anything.
var exports = newSource("export", "What becomes of the state of a cluster as metrics",
	[]desc{exportEntries, exportMalformed},
	func(s *source, db *statedb.DB, exports statedb.Table[*state.Export], workloads statedb.Table[*state.Workload]) {
		s.read = func(ch into) {
			txn := db.ReadTxn()
			for row := range exports.All(txn) {
				ch.put(exportEntries, float64(row.Pushed), string(row.Resource), filter.Pushed.String())
				ch.put(exportEntries, float64(row.OnDemand), string(row.Resource), filter.OnDemand.String())
				ch.put(exportEntries, float64(row.NotGlobal), string(row.Resource), filter.Kept.String())
			}
			malformed := 0
			for range export.Malformed(txn, workloads) {
				malformed++
			}
			ch.put(exportMalformed, float64(malformed))
		}
	},
)

// skipped is what a KVStoreMesh leaves out. A cluster without a region, or in ours,
// has 0.
var skipped = newSource("kvstoremesh", "What of remote clusters is left out as metrics",
	[]desc{skippedEntries},
	func(s *source, db *statedb.DB, clusters statedb.Table[*state.RemoteCluster]) {
		s.read = func(ch into) {
			for row := range clusters.All(db.ReadTxn()) {
				for resource, of := range row.Resources {
					if of.Enabled {
						ch.put(skippedEntries, float64(of.Skipped), row.Name, string(resource))
					}
				}
			}
		}
	},
)
