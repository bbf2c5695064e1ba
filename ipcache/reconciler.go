// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/state"
)

const (
	// roundSize is the most changes of one round: few enough that the buffers of
	// a round stay small, many enough that its cost doesn't count
	// (BenchmarkPipeline).
	roundSize = 20_000

	// Entries that failed are tried again after 100 ms, then after twice as long
	// each time.
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second

	// pruneInterval is how often the map is compared in full with what is wanted.
	// Only we write to it, so this is for what should never happen.
	pruneInterval = time.Hour

	// overflowLogInterval bounds how often overflow is logged.
	overflowLogInterval = 10 * time.Second
)

// reconciler brings what the tables of endpoints and nodes want into the map, in
// its one job, in rounds. It keeps no status of single entries, only of those
// that failed: statedb's reconciler, which does, writes each row a second time.
type reconciler struct {
	log    *slog.Logger
	db     *statedb.DB
	nodes  statedb.Table[*state.Node]
	target *Datapath
	health cell.Health // of the capacity

	// Owned by the job.
	wanted          *wanted
	endpointChanges statedb.ChangeIterator[*state.Endpoint]
	nodeChanges     statedb.ChangeIterator[*state.Node]
	// failed are the keys at which the map isn't as wanted, but for want of room,
	// with the last error; overflow those that didn't fit. No key is in both.
	failed   map[Key]error
	overflow map[Key]struct{}
	// compared is set once the map of an earlier process was pruned.
	compared bool
	// unpruned is why the last comparison with all of the map has failed, if it has.
	unpruned error
	// retry has the next round try again what has failed, and fresh says that
	// something has that hadn't before: it needn't wait as long as the others.
	retry, fresh bool
	backoff      wait.Backoff
	logLimit     *rate.Limiter

	// The buffers of a round.
	touched []Key
	updates []Entry
	deletes []Key

	pruneNow chan struct{}
}

func newReconciler(log *slog.Logger, health cell.Health, db *statedb.DB, rules rules,
	endpoints statedb.Table[*state.Endpoint], nodes statedb.Table[*state.Node], target *Datapath) *reconciler {
	return &reconciler{
		log: log, db: db, nodes: nodes, target: target, health: health.NewScope("capacity"),
		wanted: newWanted(rules, endpoints),
		failed: map[Key]error{}, overflow: map[Key]struct{}{},
		backoff:  newBackoff(),
		logLimit: rate.NewLimiter(rate.Every(overflowLogInterval), 1),
		pruneNow: make(chan struct{}, 1),
	}
}

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: retryMin, Factor: 2, Jitter: 0.1, Steps: 20, Cap: retryMax}
}

// pruneSoon has the map compared in full with what is wanted, soon, once the tables
// are initialized. It returns at once, and may be called by several goroutines.
func (r *reconciler) pruneSoon() {
	select {
	case r.pruneNow <- struct{}{}:
	default: // it is asked for already
	}
}

// run reconciles until ctx ends.
func (r *reconciler) run(ctx context.Context, health cell.Health) error {
	if err := r.watch(); err != nil {
		return err
	}
	prune := time.NewTicker(pruneInterval)
	defer prune.Stop()
	retry := time.NewTimer(retryMax)
	defer retry.Stop()
	var (
		armed   = true // the timer runs, from a start that it isn't needed at
		pruning = true // of what an earlier process has left
		said    string
	)
	r.start()
	for {
		next := r.step()
		if next.rest && ctx.Err() == nil {
			continue
		}
		if pruning && next.synced {
			if err := r.prune(r.db.ReadTxn()); err != nil {
				r.log.Warn("Comparing the ipcache map with the tables failed", "error", err)
				r.unpruned = err
			} else {
				pruning, r.unpruned = false, nil
			}
		}
		switch needed := len(r.failed) > 0 || (pruning && next.synced); {
		case !needed:
			retry.Stop()
			armed, r.backoff = false, newBackoff()
		case !armed || r.fresh:
			retry.Reset(r.backoff.Step())
			armed = true
		}
		r.fresh = false
		said = r.report(health, said)
		select {
		case <-ctx.Done():
			return nil
		case <-next.endpoints:
		case <-next.nodes:
		case <-next.endpointsSynced:
		case <-next.nodesSynced:
		case <-retry.C:
			armed, r.retry = false, true
		case <-prune.C:
			pruning = true
		case <-r.pruneNow:
			pruning = true
		}
	}
}

// watch begins to follow the sources.
func (r *reconciler) watch() (err error) {
	wtxn := r.db.WriteTxn(r.wanted.endpoints, r.nodes)
	defer wtxn.Commit()
	if r.endpointChanges, err = r.wanted.endpoints.Changes(wtxn); err != nil {
		return fmt.Errorf("watching endpoints: %w", err)
	}
	if r.nodeChanges, err = r.nodes.Changes(wtxn); err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	return nil
}

// start writes what depends on nothing.
func (r *reconciler) start() {
	for key, c := range r.wanted.claims.strongest {
		r.updates = append(r.updates, Entry{key, c.value})
	}
	r.write(r.db.ReadTxn())
}

// next says what follows a round.
type next struct {
	// rest: there is more to do at once.
	rest bool
	// synced: the sources are complete, and all of them was taken in.
	synced bool
	// These are closed when there is something to do again.
	endpoints, nodes, endpointsSynced, nodesSynced <-chan struct{}
}

// step takes one snapshot of the sources and brings what changed into the map,
// roundSize changes at most. Nodes come first: an endpoint without its node
// can't be reached.
func (r *reconciler) step() (next next) {
	txn := r.db.ReadTxn()
	nodes, nodesWatch := r.nodeChanges.Next(txn)
	endpoints, endpointsWatch := r.endpointChanges.Next(txn)
	next.nodes, next.endpoints = nodesWatch, endpointsWatch
	// Once initialized these channels stay closed and must not wake us.
	endpointsSynced, endpointsInit := r.wanted.endpoints.Initialized(txn)
	if !endpointsSynced {
		next.endpointsSynced = endpointsInit
	}
	nodesSynced, nodesInit := r.nodes.Initialized(txn)
	if !nodesSynced {
		next.nodesSynced = nodesInit
	}

	budget := roundSize
	r.touched = r.touched[:0]
	for change := range nodes {
		if change.Deleted {
			r.touched = r.wanted.claims.dropNode(r.touched, change.Object)
		} else {
			r.touched = r.wanted.claims.putNode(r.touched, change.Object, r.wanted.rules.node(&change.Object.Node))
		}
		if budget--; budget == 0 {
			next.rest = true
			break
		}
	}
	if r.retry {
		// With the same snapshot as all else: there is one outcome for a key.
		r.touched = slices.AppendSeq(r.touched, maps.Keys(r.failed))
		r.retry = false
	}
	for _, key := range r.touched {
		r.queue(txn, key)
	}
	if !next.rest {
		for change := range endpoints {
			r.queueEndpoint(change)
			if budget--; budget == 0 {
				next.rest = true
				break
			}
		}
	}
	r.write(txn)
	r.target.wanted.Store(int64(r.wanted.endpoints.NumObjects(txn) + len(r.wanted.claims.strongest)))
	r.target.failed.Store(int64(len(r.failed)))
	next.synced = !next.rest && endpointsSynced && nodesSynced
	return next
}

// queue has the map made as wanted at one key.
func (r *reconciler) queue(txn statedb.ReadTxn, key Key) {
	if c, ok := r.wanted.at(txn, key); ok {
		r.updates = append(r.updates, Entry{key, c.value})
	} else {
		r.deletes = append(r.deletes, key)
	}
}

// queueEndpoint is queue for a changed endpoint, without looking it up.
func (r *reconciler) queueEndpoint(change statedb.Change[*state.Endpoint]) {
	entry, ok := r.wanted.rules.endpoint(change.Object)
	switch {
	case !ok: // no such prefix can be in the map
	case !change.Deleted:
		entry.Value = r.wanted.with(change.Object, entry).value
		r.updates = append(r.updates, entry)
	default:
		if c, ok := r.wanted.claims.strongest[entry.Key]; ok {
			r.updates = append(r.updates, Entry{entry.Key, c.value})
		} else {
			r.deletes = append(r.deletes, entry.Key)
		}
	}
}

// write brings what is queued into the map, in one batch of deletions and one of
// updates. What doesn't fit, fails or is in order again is noted. Into the room
// that deletions made goes what didn't fit before.
func (r *reconciler) write(txn statedb.ReadTxn) {
	before := len(r.overflow)
	if len(r.deletes) > 0 {
		errs := r.target.Delete(r.deletes)
		for i, key := range r.deletes {
			r.outcome(key, errorAt(errs, i))
		}
		if len(r.overflow) > 0 {
			r.admit(txn, len(r.deletes))
		}
	}
	if len(r.updates) > 0 {
		errs := r.target.Update(r.updates)
		if errs != nil || len(r.failed)+len(r.overflow) > 0 {
			for i := range r.updates {
				r.outcome(r.updates[i].Key, errorAt(errs, i))
			}
		}
	}
	r.updates, r.deletes = r.updates[:0], r.deletes[:0]
	r.reportOverflow(before)
}

// admit queues entries that didn't fit, as many as there may be room for.
func (r *reconciler) admit(txn statedb.ReadTxn, room int) {
	for key := range r.overflow {
		if room--; room < 0 {
			return
		}
		if c, ok := r.wanted.at(txn, key); ok {
			r.updates = append(r.updates, Entry{key, c.value})
		}
	}
}

// outcome notes how writing or deleting a key went.
func (r *reconciler) outcome(key Key, err error) {
	switch {
	case errors.Is(err, ErrFull):
		delete(r.failed, key)
		r.overflow[key] = struct{}{}
	case err != nil:
		if _, ok := r.failed[key]; !ok {
			r.fresh, r.backoff = true, newBackoff()
		}
		delete(r.overflow, key)
		r.failed[key] = err
	default:
		delete(r.failed, key)
		delete(r.overflow, key)
	}
}

func errorAt(errs []error, i int) error {
	if errs == nil {
		return nil
	}
	return errs[i]
}
