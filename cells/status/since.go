// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
)

// since remembers since when what isn't well isn't. Health doesn't tell: a row that is
// degraded has the time of its last report, and no longer when it was well.
type since struct {
	db    *statedb.DB
	table statedb.Table[types.Status]

	mu    sync.Mutex
	began map[types.HealthID]time.Time
}

type sinceParams struct {
	cell.In

	Jobs   job.Group
	DB     *statedb.DB
	Health statedb.Table[types.Status]
	Host   Host `optional:"true"`
}

func newSince(p sinceParams) *since {
	s := &since{db: p.DB, table: p.Health, began: make(map[types.HealthID]time.Time)}
	if !p.Host.Off {
		p.Jobs.Add(job.OneShot("follow-health", s.follow))
	}
	return s
}

// follow is the job. It costs a look at each row that is reported anew.
func (s *since) follow(ctx context.Context, health cell.Health) error {
	health.OK("Following health")
	txn := s.db.WriteTxn(s.table)
	changes, err := s.table.Changes(txn)
	txn.Commit()
	if err != nil {
		return fmt.Errorf("watching health: %w", err)
	}
	for {
		batch, more := changes.Next(s.db.ReadTxn())
		s.mu.Lock()
		for change := range batch {
			s.note(&change.Object, change.Deleted)
		}
		s.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// note is called with mu held.
func (s *since) note(row *types.Status, deleted bool) {
	id := row.ID.HealthID()
	if deleted || !unwell(row) {
		delete(s.began, id)
	} else if _, known := s.began[id]; !known {
		s.began[id] = row.Updated
	}
}

// of is since when a row is as it is: if not even that was followed yet, since its last
// report.
func (s *since) of(row *types.Status) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if began, known := s.began[row.ID.HealthID()]; known {
		return began
	}
	return row.Updated
}

// unwell says whether a row tells of a problem. A job that has ended because of one has
// stopped, and will not get over it.
func unwell(row *types.Status) bool {
	return row.Level == types.LevelDegraded || row.Level == types.LevelStopped && row.Error != ""
}
