// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/reconciler"
	"golang.org/x/time/rate"
)

const (
	// reconcileRound is the most entries of one round of the reconciler: few
	// enough that their status follows soon, many enough that the cost of a
	// round doesn't count (BenchmarkPipeline).
	reconcileRound = 10_000

	// Entries that failed are tried again after 100 ms, then after twice as long
	// each time.
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second

	// pruneInterval is how often the map is compared with the table in full. Only
	// we write to it, so this is for what should never happen.
	pruneInterval = time.Hour

	// overflowLogInterval bounds how often overflow is logged.
	overflowLogInterval = 10 * time.Second
)

// operations bring rows into the map for statedb's reconciler, which calls them
// from one goroutine.
type operations struct {
	log    *slog.Logger
	health cell.Health
	table  statedb.Table[*Row]
	target *Datapath

	// pruned is set once the map was compared with the table, or need not be.
	pruned bool
	// overflow are the keys that are wanted and didn't fit.
	overflow map[Key]struct{}
	logLimit *rate.Limiter

	// Buffers that are kept from batch to batch.
	entries []Entry
	keys    []Key
}

var (
	_ reconciler.Operations[*Row]      = (*operations)(nil)
	_ reconciler.BatchOperations[*Row] = (*operations)(nil)
)

func newOperations(log *slog.Logger, health cell.Health, table statedb.Table[*Row], target *Datapath) *operations {
	return &operations{
		log: log, health: health.NewScope("capacity"), table: table, target: target,
		overflow: map[Key]struct{}{},
		logLimit: rate.NewLimiter(rate.Every(overflowLogInterval), 1),
	}
}

// registerReconciler starts the reconciliation of the table with the map.
func registerReconciler(params reconciler.Params, table statedb.RWTable[*Row], ops *operations) (reconciler.Reconciler[*Row], error) {
	return reconciler.Register(params, table, cloneRow, setStatus, (*Row).Status, ops, ops,
		reconciler.WithRoundLimits(reconcileRound, rate.NewLimiter(1000, 1)),
		reconciler.WithRetry(retryMin, retryMax),
		reconciler.WithPruning(pruneInterval),
		// Pruning repairs too; writing every entry again now and then adds nothing.
		reconciler.WithRefreshing(0, nil),
	)
}

// UpdateBatch implements reconciler.BatchOperations.
func (o *operations) UpdateBatch(_ context.Context, _ statedb.ReadTxn, batch []reconciler.BatchEntry[*Row]) {
	o.entries = o.entries[:0]
	for i := range batch {
		o.entries = append(o.entries, batch[i].Object.Entry)
	}
	for i, err := range o.update(o.entries) {
		batch[i].Result = err
	}
}

// DeleteBatch implements reconciler.BatchOperations.
func (o *operations) DeleteBatch(_ context.Context, txn statedb.ReadTxn, batch []reconciler.BatchEntry[*Row]) {
	o.keys = o.keys[:0]
	for i := range batch {
		o.keys = append(o.keys, batch[i].Object.Key)
	}
	for i, err := range o.delete(o.keys) {
		batch[i].Result = err
	}
	o.admit(txn, len(batch))
}

// admit writes entries that didn't fit into the room that deletions made, rather
// than leave them out until their retries, which may be half a minute apart.
// Their rows' status follows with the retry.
func (o *operations) admit(txn statedb.ReadTxn, room int) {
	if len(o.overflow) == 0 {
		return
	}
	o.entries = o.entries[:0]
	for key := range o.overflow {
		if len(o.entries) == room {
			break
		}
		if row, _, ok := o.table.Get(txn, ByPrefix(key.Prefix())); ok {
			o.entries = append(o.entries, row.Entry)
		}
	}
	o.update(o.entries) // what fails again is still counted, and is retried
}

// Update implements reconciler.Operations; it is called for retries.
func (o *operations) Update(_ context.Context, _ statedb.ReadTxn, _ statedb.Revision, row *Row) error {
	return errors.Join(o.update([]Entry{row.Entry})...)
}

// Delete implements reconciler.Operations; it is called for retries.
func (o *operations) Delete(_ context.Context, _ statedb.ReadTxn, _ statedb.Revision, row *Row) error {
	return errors.Join(o.delete([]Key{row.Key})...)
}

// Prune implements reconciler.Operations. It deletes what the map has beyond the
// table, such as entries of an earlier process whose pods are gone meanwhile, and
// writes again what the table says is there and isn't, or is different.
//
// The reconciler calls it once the table is initialized, and every hour. It
// reads the whole map: about 1 µs an entry (BenchmarkBPFAll).
func (o *operations) Prune(_ context.Context, txn statedb.ReadTxn, rows iter.Seq2[*Row, statedb.Revision]) error {
	if !o.pruned && !o.target.Restored() {
		// A map that began empty has nothing but what we wrote.
		o.pruned = true
		return nil
	}
	o.pruned = true

	var (
		surplus []Key
		wrong   []Entry
		right   int
	)
	for entry, err := range o.target.All() {
		if err != nil {
			return err
		}
		row, _, ok := o.table.Get(txn, ByPrefix(entry.Prefix()))
		switch {
		case !ok || row.Key != entry.Key:
			surplus = append(surplus, entry.Key)
		case row.status != reconciler.StatusKindDone:
			// What it is to be comes by the usual way.
		case row.Value != entry.Value:
			wrong = append(wrong, row.Entry)
		default:
			right++
		}
	}

	done := 0
	for row := range rows {
		if row.status == reconciler.StatusKindDone {
			done++
		}
	}
	missing := done - right - len(wrong)
	if missing > 0 {
		// So rare that it isn't worth keeping what was seen: write them all.
		wrong = wrong[:0]
		for row := range rows {
			if row.status == reconciler.StatusKindDone {
				wrong = append(wrong, row.Entry)
			}
		}
	}

	errs := o.delete(surplus)
	errs = append(errs, o.update(wrong)...)
	if len(surplus)+len(wrong) > 0 {
		o.log.Info("Brought the ipcache map in line with the table",
			"deleted", len(surplus),
			"rewritten", len(wrong),
			"missing", missing,
		)
	}
	return firstOf(errs)
}

func (o *operations) update(entries []Entry) []error {
	errs := o.target.Update(entries)
	before := len(o.overflow)
	if before == 0 && errs == nil {
		return nil
	}
	for i, entry := range entries {
		switch {
		case errs == nil || errs[i] == nil:
			delete(o.overflow, entry.Key)
		case errors.Is(errs[i], ErrFull):
			o.overflow[entry.Key] = struct{}{}
		}
	}
	o.report(before)
	return errs
}

func (o *operations) delete(keys []Key) []error {
	errs := o.target.Delete(keys)
	before := len(o.overflow)
	if before > 0 {
		for _, key := range keys {
			delete(o.overflow, key)
		}
	}
	o.report(before)
	return errs
}

// report tells of overflow when its count changed.
func (o *operations) report(before int) {
	now := len(o.overflow)
	if now == before {
		return
	}
	o.target.overflow.Store(int64(now))
	if now == 0 {
		o.health.OK("Everything fits")
		o.log.Info("All entries fit into the ipcache map again")
		return
	}
	o.health.Degraded(fmt.Sprintf("%d entries don't fit (--%s=%d)", now, flagMapMax, o.target.Capacity()), ErrFull)
	if o.logLimit.Allow() {
		o.log.Error("The ipcache map is full: traffic to and from some addresses has no identity",
			"notFitting", now,
			"capacity", o.target.Capacity(),
			"remedy", "raise --"+flagMapMax,
		)
	}
}

// firstOf is the first error, with the number of those that follow.
func firstOf(errs []error) error {
	var first error
	count := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		if count++; first == nil {
			first = err
		}
	}
	if count > 1 {
		return fmt.Errorf("%w (and %d more)", first, count-1)
	}
	return first
}
