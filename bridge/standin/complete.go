// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

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
		err := ingest.AwaitLocal(graceCtx, s.writer, table)
		cancel()
		if err != nil && ctx.Err() == nil {
			health.Degraded(waiting, errIncomplete)
			err = ingest.AwaitLocal(ctx, s.writer, table)
		}
		if err != nil {
			return nil //nolint:nilerr // the hive stops
		}
	}
	health.OK("All of this cluster was there at " + time.Now().UTC().Format(time.RFC3339))
	return nil
}
