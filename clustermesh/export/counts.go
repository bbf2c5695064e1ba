// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/cells/state"
)

// countInterval is how often the table "exports" is written at most. What is in etcd
// changes with each commit, and a row for each would wake its readers as often; to
// look whether something has changed takes a microsecond.
const countInterval = 250 * time.Millisecond

// keepCounts keeps the table "exports", and says in health what is in it.
func keepCounts(jobs job.Group, exporter *Exporter, writer *state.Writer) {
	jobs.Add(job.OneShot("count-exports", func(ctx context.Context, health cell.Health) error {
		return exporter.keepCounts(ctx, health, writer)
	}))
}

func (e *Exporter) keepCounts(ctx context.Context, health cell.Health, writer *state.Writer) error {
	ticker := time.NewTicker(countInterval)
	defer ticker.Stop()
	last := make([]state.Export, len(e.followers))
	for {
		var changed []state.Export
		for i, f := range e.followers {
			if row := e.count(f); row != last[i] {
				last[i] = row
				changed = append(changed, row)
			}
		}
		if len(changed) > 0 {
			tx := writer.Begin()
			for _, row := range changed {
				tx.UpsertExport(row)
			}
			tx.Commit()
			health.OK("In etcd are " + e.describe())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// count is the row of a follower as it is now.
func (e *Exporter) count(f tableFollower) state.Export {
	row := state.Export{
		Resource: f.resource(),
		Mode:     e.workloads.workload.Mode,
		Region:   e.workloads.region,
		Synced:   true,
	}
	row.NotGlobal, row.Refused = f.counts()
	for _, p := range f.places() {
		if p.name.onDemand {
			row.OnDemand = p.Len()
		} else {
			row.Pushed = p.Len()
		}
		row.Synced = row.Synced && p.IsComplete()
	}
	return row
}
