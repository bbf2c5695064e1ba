// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// completeInterval is the pause between two looks whether a table is complete: statedb
// tells when the last source of a table is, remote clusters included, and of one only
// when it is asked.
const completeInterval = 20 * time.Millisecond

// completeGrace is how long an agent that starts may be without all of its cluster until
// that is a problem: one whose cache is there needs a fraction of it.
const completeGrace = 5 * time.Second

var errIncomplete = errors.New("the in-cluster cache hasn't given all of this cluster yet")

// awaitAll is a job: upstream's own start waits for the tables and doesn't say for what.
func (s *standins) awaitAll(ctx context.Context, health cell.Health) error {
	begun := time.Now()
	for _, table := range []statedb.TableMeta{s.tables.Identities, s.tables.Nodes, s.tables.Endpoints} {
		waiting := fmt.Sprintf("Waiting for all %s of this cluster since %s", table.Name(), begun.UTC().Format(time.RFC3339))
		health.OK(waiting)
		graceCtx, cancel := context.WithDeadline(ctx, begun.Add(completeGrace))
		err := awaitComplete(graceCtx, s.db, table)
		cancel()
		if err != nil && ctx.Err() == nil {
			health.Degraded(waiting, errIncomplete)
			err = awaitComplete(ctx, s.db, table)
		}
		if err != nil {
			return nil //nolint:nilerr // the hive stops
		}
	}
	health.OK("All of this cluster was there at " + time.Now().UTC().Format(time.RFC3339))
	return nil
}

// awaitComplete waits until a table has had all of this cluster once. What a list would
// give before that is less than there is, and upstream would take the rest for deleted.
func awaitComplete(ctx context.Context, db *statedb.DB, table statedb.TableMeta) error {
	ticker := time.NewTicker(completeInterval)
	defer ticker.Stop()
	for {
		txn := db.ReadTxn()
		if !slices.Contains(table.PendingInitializers(txn), ingest.LocalInitializer) {
			return nil
		}
		_, all := table.Initialized(txn)
		select {
		case <-all:
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the table %q to have all of this cluster: %w", table.Name(), ctx.Err())
		}
	}
}
