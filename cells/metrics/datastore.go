// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

const datastorePrefix = "waggle_datastore_"

var (
	datastoreConnected = gauge(datastorePrefix+"connected", "Whether this cluster's own state is being read", "datastore")
	datastoreSince     = gauge(datastorePrefix+"last_change_timestamp_seconds", "When the connection to the datastore was last made or lost")
	datastoreFailures  = gauge(datastorePrefix+"failures", "How often the connection to the datastore was lost since the start")
	datastoreEntries   = gauge(datastorePrefix+"entries", "What the tables hold of this cluster", "resource")
	datastoreRefused   = gauge(datastorePrefix+"refused", "Values of this cluster that were not taken in since the start", "reason")

	// What is kept of it on disk, and what that of the process before was worth.
	snapshotTime     = gauge(datastorePrefix+"snapshot_timestamp_seconds", "When the snapshot on disk was written")
	snapshotBytes    = gauge(datastorePrefix+"snapshot_bytes", "Size of the snapshot on disk")
	snapshotRestored = gauge(datastorePrefix+"restored_entries", "What the start had from a snapshot")
	snapshotStarted  = gauge(datastorePrefix+"started", "How a restored resource went on: resumed, or why it was listed", "resource", "how")
)

// datastore is what the one row of the table "datastore" says.
var datastore = newSource("datastore", "Where an agent has the state of its cluster from as metrics",
	[]desc{datastoreConnected, datastoreSince, datastoreFailures, datastoreEntries, datastoreRefused,
		snapshotTime, snapshotBytes, snapshotRestored, snapshotStarted},
	func(s *source, db *statedb.DB, table statedb.Table[*state.Datastore]) {
		s.read = func(ch into) {
			if row, _, found := table.Get(db.ReadTxn(), state.TheDatastore()); found {
				ch.datastore(row)
			}
		}
	},
)

func (ch into) datastore(row *state.Datastore) {
	ch.put(datastoreConnected, one(row.Connected), row.Kind)
	ch.put(datastoreSince, float64(row.Since.Unix()))
	ch.put(datastoreFailures, float64(row.Failures))
	for resource, of := range row.Resources {
		if of.Enabled {
			ch.put(datastoreEntries, float64(of.Entries), string(resource))
		}
	}
	for reason, n := range row.Refused {
		ch.put(datastoreRefused, float64(n), string(reason))
	}
	snapshot := &row.Snapshot
	if snapshot.Created.IsZero() {
		return
	}
	ch.put(snapshotTime, float64(snapshot.Created.Unix()))
	ch.put(snapshotBytes, float64(snapshot.Bytes))
	ch.put(snapshotRestored, float64(snapshot.Restored))
	for resource, how := range snapshot.Started {
		ch.put(snapshotStarted, 1, string(resource), how)
	}
}

// one is a condition as a metric.
func one(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}
