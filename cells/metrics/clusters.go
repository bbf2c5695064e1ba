// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/cells/status"
)

const clusterPrefix = "waggle_remote_cluster_"

var (
	clusterConnected = gauge(clusterPrefix+"connected", "Whether the remote cluster's etcd answers", metrics.LabelTargetCluster)
	clusterSynced    = gauge(clusterPrefix+"synced", "Whether all that is required of it was read", metrics.LabelTargetCluster)
	clusterEntries   = gauge(clusterPrefix+"entries", "What was taken in of it", metrics.LabelTargetCluster, "resource")
	clusterRefused   = counter(clusterPrefix+"refused_total", "Values of it that were not taken in", metrics.LabelTargetCluster, "reason")
	clusterConflicts = gauge(clusterPrefix+"conflicts", "Addresses that it claims and another cluster holds", metrics.LabelTargetCluster)
	clusterHeldBack  = gauge(clusterPrefix+"held_back_endpoints", "Endpoints of it that wait for their identity", metrics.LabelTargetCluster)
	clusterLists     = counter(clusterPrefix+"lists_total", "Lists of its resources: more than one of each means that its etcd was another one, had compacted, or was asked again", metrics.LabelTargetCluster)
	clusterLastEvent = gauge(clusterPrefix+"last_event_timestamp_seconds", "When data of it last arrived", metrics.LabelTargetCluster)
)

// clusters is what the table of remote clusters says beyond upstream's metrics of them.
var clusters = newSource("remote-cluster", "What is read of remote clusters as metrics",
	[]desc{clusterConnected, clusterSynced, clusterEntries, clusterRefused, clusterConflicts, clusterHeldBack, clusterLists, clusterLastEvent},
	func(s *source, db *statedb.DB, table statedb.Table[*state.RemoteCluster]) {
		s.read = func(ch into) {
			for row := range table.All(db.ReadTxn()) {
				ch.put(clusterConnected, one(row.Connected), row.Name)
				ch.put(clusterSynced, one(row.Ready), row.Name)
				ch.put(clusterConflicts, float64(row.Conflicts), row.Name)
				ch.put(clusterHeldBack, float64(row.HeldBack), row.Name)
				if !row.LastEvent.IsZero() {
					ch.put(clusterLastEvent, float64(row.LastEvent.Unix()), row.Name)
				}
				lists := uint64(0)
				for resource, of := range row.Resources {
					lists += of.Lists
					if of.Enabled {
						ch.put(clusterEntries, float64(of.Entries), row.Name, string(resource))
					}
				}
				ch.put(clusterLists, float64(lists), row.Name)
				for reason, n := range row.Refused {
					ch.put(clusterRefused, float64(n), row.Name, string(reason))
				}
			}
		}
	},
)

var (
	ipcacheWanted   = gauge("waggle_ipcache_wanted_entries", "Entries that the tables want in the ipcache map")
	ipcacheCapacity = gauge("waggle_ipcache_capacity", "How many fit")
	ipcacheOverflow = gauge("waggle_ipcache_overflow_entries", "Wanted entries that don't fit: traffic to and from them has no identity")
	ipcacheFailed   = gauge("waggle_ipcache_failed_entries", "Entries that aren't in the map as they should be for another reason")
)

// ipcache is the map of an agent that writes it itself.
var ipcache = newSource("ipcache", "What is in the ipcache map as metrics",
	[]desc{ipcacheWanted, ipcacheCapacity, ipcacheOverflow, ipcacheFailed},
	func(s *source, p struct {
		cell.In
		Map status.IPCacheFunc `optional:"true"`
	}) {
		if p.Map == nil {
			return
		}
		s.read = func(ch into) {
			m := p.Map()
			ch.put(ipcacheWanted, float64(m.Wanted))
			ch.put(ipcacheCapacity, float64(m.Capacity))
			ch.put(ipcacheOverflow, float64(m.Overflow))
			ch.put(ipcacheFailed, float64(m.Failed))
		}
	},
)
