// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

// datastoreMetricsCell gives as metrics what the table "datastore" says.
var datastoreMetricsCell = cell.Module(
	"datastore-metrics",
	"Where an agent has the state of its cluster from as metrics",

	metrics.Metric(newDatastoreMetrics),
	cell.Invoke(func(jobs job.Group, db *statedb.DB, table statedb.Table[*state.Datastore], m *datastoreMetrics) {
		jobs.Add(job.OneShot("datastore-metrics", func(ctx context.Context, _ cell.Health) error {
			m.follow(ctx, db, table)
			return nil
		}))
	}),
)

// datastoreMetrics are those of an agent's datastore.
type datastoreMetrics struct {
	// Connected is 1 while the datastore is read; its label is the --datastore.
	Connected metric.Vec[metric.Gauge]
	// Since is when Connected last changed, in seconds since 1970.
	Since metric.Gauge
	// Failures counts how often the connection was lost since the start.
	Failures metric.Gauge
	// Entries are the rows of this cluster, by resource.
	Entries metric.Vec[metric.Gauge]
	// Refused counts values that weren't taken in, by reason.
	Refused metric.Vec[metric.Gauge]
	// Snapshot is when the one on disk was written, in seconds since 1970, and
	// SnapshotBytes its size.
	Snapshot, SnapshotBytes metric.Gauge
	// Restored are the entries that the start had from one, and Started is 1 for what
	// became of each resource of it: resumed, or why it was listed.
	Restored metric.Gauge
	Started  metric.Vec[metric.Gauge]
}

func newDatastoreMetrics() *datastoreMetrics {
	opts := func(name, help string) metric.GaugeOpts {
		return metric.GaugeOpts{Namespace: "waggle", Subsystem: "datastore", Name: name, Help: help}
	}
	return &datastoreMetrics{
		Connected: metric.NewGaugeVec(opts("connected", "Whether this cluster's own state is being read"), []string{"datastore"}),
		Since:     metric.NewGauge(opts("last_change_timestamp_seconds", "When the connection to the datastore was last made or lost")),
		Failures:  metric.NewGauge(opts("failures", "How often the connection to the datastore was lost since the start")),
		Entries:   metric.NewGaugeVec(opts("entries", "What the tables hold of this cluster"), []string{"resource"}),
		Refused:   metric.NewGaugeVec(opts("refused", "Values of this cluster that were not taken in since the start"), []string{"reason"}),

		Snapshot:      metric.NewGauge(opts("snapshot_timestamp_seconds", "When the snapshot on disk was written")),
		SnapshotBytes: metric.NewGauge(opts("snapshot_bytes", "Size of the snapshot on disk")),
		Restored:      metric.NewGauge(opts("restored_entries", "What the start had from a snapshot")),
		Started:       metric.NewGaugeVec(opts("started", "How a restored resource went on: resumed, or why it was listed"), []string{"resource", "how"}),
	}
}

// follow keeps them up with the one row until ctx ends.
func (m *datastoreMetrics) follow(ctx context.Context, db *statedb.DB, table statedb.Table[*state.Datastore]) {
	for {
		row, _, changed, found := table.GetWatch(db.ReadTxn(), state.TheDatastore())
		if found {
			m.set(row)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (m *datastoreMetrics) set(row *state.Datastore) {
	connected := 0.0
	if row.Connected {
		connected = 1
	}
	m.Connected.WithLabelValues(row.Kind).Set(connected)
	m.Since.Set(float64(row.Since.Unix()))
	m.Failures.Set(float64(row.Failures))
	for resource, of := range row.Resources {
		if of.Enabled {
			m.Entries.WithLabelValues(string(resource)).Set(float64(of.Entries))
		}
	}
	for reason, n := range row.Refused {
		m.Refused.WithLabelValues(string(reason)).Set(float64(n))
	}
	if snapshot := &row.Snapshot; !snapshot.Created.IsZero() {
		m.Snapshot.Set(float64(snapshot.Created.Unix()))
		m.SnapshotBytes.Set(float64(snapshot.Bytes))
		m.Restored.Set(float64(snapshot.Restored))
		for resource, how := range snapshot.Started {
			m.Started.WithLabelValues(string(resource), how).Set(1)
		}
	}
}
