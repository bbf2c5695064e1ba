// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// reportInterval is how often a healthy exporter says that it still is one; a
// report for each round would be a write to the health table for each batch.
const reportInterval = 10 * time.Second

// Exporter follows the state tables. It works in rounds: one round is one read
// transaction, and at most one batch for each resource.
type Exporter struct {
	log        *slog.Logger
	db         *statedb.DB
	namespaces *namespaces
	nsTable    statedb.Table[*state.Namespace]
	workloads  *workloads
	// decisive are the tables that have to be complete before anything is decided of
	// endpoints and identities.
	decisive []statedb.TableMeta
	// followers, in the order in which a reader wants what they write.
	followers []tableFollower
	// uses is nil unless pods opt in.
	uses  *uses
	inbox *inbox
	admit func(context.Context) error
	// completed is closed when everything was applied, synced when it is in etcd.
	completed, synced chan struct{}

	// What health was last told, and when.
	status   string
	reported time.Time
}

// newExporter makes an Exporter of the cluster's rows. newScope makes the Scope of a
// place, and is given what to call when etcd has lost keys of it. Only an exporter
// to other clusters has on-demand places; see Options.
func newExporter(
	log *slog.Logger, db *statedb.DB, tables state.Tables, cluster string, options Options, by filters,
	newScope func(place placeName, refill func(keys []string)) scope,
) *Exporter {
	e := &Exporter{
		log:        log,
		db:         db,
		namespaces: newNamespaces(by.namespace, options.AllNamespaces),
		nsTable:    tables.Namespaces,
		workloads:  &workloads{filters: by, table: tables.Workloads},
		inbox:      newInbox(),
		admit:      func(context.Context) error { return nil },
		completed:  make(chan struct{}),
		synced:     make(chan struct{}),
	}
	if e.workloads.reads() {
		e.decisive = append(e.decisive, tables.Workloads)
	}
	at := func(resource wire.Resource, onDemand bool) *place {
		name := placeName{resource, onDemand}
		return &place{
			name: name, scope: newScope(name, func(keys []string) { e.inbox.refill(name, keys) }),
			awaited: map[string]struct{}{},
		}
	}
	// In the order of wire.Resources: an endpoint is of no use before its
	// identity and node.
	for _, resource := range wire.Resources {
		if !options.exports(resource) {
			continue
		}
		switch resource {
		case wire.Identities:
			used := func(identity uint32) bool { return e.uses.used(identity) }
			f := newFollower(log, identityCodec(by.workload, used), tables.Identities, at(resource, false))
			if !options.PushedOnly {
				f.onDemand, f.pruned = at(resource, true), e.inbox.pruned
			}
			e.followers = append(e.followers, f)
		case wire.Nodes:
			e.followers = append(e.followers, newFollower(log, nodeCodec(cluster), tables.Nodes, at(resource, false)))
		case wire.Endpoints:
			f := newFollower(log, endpointCodec(options.NamedPorts, e.workloads), tables.Endpoints, at(resource, false))
			if !options.PushedOnly {
				f.onDemand, f.pruned = at(resource, true), e.inbox.pruned
			}
			e.followers = append(e.followers, f)
		case wire.Services:
			e.followers = append(e.followers, newFollower(log, serviceCodec(cluster, options.AllServices), tables.Services, at(resource, false)))
		case wire.ServiceExports:
			e.followers = append(e.followers, newFollower(log, serviceExportCodec(cluster), tables.ServiceExports, at(resource, false)))
		}
	}
	if by.workload.Mode == filter.SyncOptIn {
		e.optIn(tables)
	}
	return e
}

// Counts gives the number of pushed keys in etcd by resource. It is safe to call from
// any goroutine.
func (e *Exporter) Counts() map[wire.Resource]int {
	counts := make(map[wire.Resource]int, len(e.followers))
	for _, f := range e.followers {
		counts[f.resource()] = f.target().Len()
	}
	return counts
}

// refusal is why what a key stands for can't be encoded; nil if it can, as far as is
// known. It is safe to call from any goroutine.
func (e *Exporter) refusal(resource wire.Resource, key string) error {
	for _, f := range e.followers {
		if f.resource() == resource {
			return f.refusal(key)
		}
	}
	return nil
}

// Synced is closed once all that the cluster had at start is in etcd, canaries
// included.
func (e *Exporter) Synced() <-chan struct{} { return e.synced }

// run exports until ctx ends.
func (e *Exporter) run(ctx context.Context, health cell.Health) error {
	if err := e.load(ctx, health); err != nil {
		return nil
	}
	changes, err := e.follow()
	if err != nil {
		return err
	}
	for {
		// While the Writer has much to write, changes gather in the tables.
		if err := e.admit(ctx); err != nil {
			return nil
		}
		watch := statedb.NewWatchSet()
		if err := e.round(ctx, changes, watch); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		e.report(health)
		if _, err := watch.Wait(ctx, 0); err != nil {
			return nil
		}
	}
}

// load learns what an earlier process left in etcd, trying until ctx ends.
func (e *Exporter) load(ctx context.Context, health cell.Health) error {
	for _, f := range e.followers {
		backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 10 * time.Second}
		for {
			err := loadAll(ctx, f.places())
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			health.Degraded("Can't read what etcd holds", err)
			e.log.Warn("Reading what etcd holds failed, trying again", "resource", f.resource(), "error", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(backoff.Step()):
			}
		}
	}
	return nil
}

func loadAll(ctx context.Context, places []*place) error {
	for _, p := range places {
		if err := p.Load(ctx); err != nil {
			return err
		}
	}
	return nil
}

// follow begins to track changes of all tables, from their whole content on. What
// it gives are those of the namespaces; nil if they don't count.
func (e *Exporter) follow() (statedb.ChangeIterator[*state.Namespace], error) {
	var metas []statedb.TableMeta
	if !e.namespaces.all {
		metas = append(metas, e.nsTable)
	}
	for _, f := range e.followers {
		metas = append(metas, f.meta())
	}
	if e.workloads.reads() {
		metas = append(metas, e.workloads.table)
	}
	wtxn := e.db.WriteTxn(metas...)
	defer wtxn.Commit()
	if e.workloads.reads() {
		changes, err := e.workloads.table.Changes(wtxn)
		if err != nil {
			return nil, fmt.Errorf("following table %q: %w", e.workloads.table.Name(), err)
		}
		e.workloads.changes = changes
	}
	for _, f := range e.followers {
		if err := f.start(wtxn); err != nil {
			return nil, fmt.Errorf("following table %q: %w", f.meta().Name(), err)
		}
	}
	if e.namespaces.all {
		return nil, nil
	}
	changes, err := e.nsTable.Changes(wtxn)
	if err != nil {
		return nil, fmt.Errorf("following table %q: %w", e.nsTable.Name(), err)
	}
	return changes, nil
}

// round brings what is queued for etcd to what the tables hold now. watch gets
// the channels of which one closes when there is reason for another round.
func (e *Exporter) round(ctx context.Context, changes statedb.ChangeIterator[*state.Namespace], watch *statedb.WatchSet) error {
	// Before the snapshot: what is asked for was lost before it was made.
	news, arrived := e.inbox.take()
	watch.Add(arrived)
	txn := e.db.ReadTxn()

	r := round{
		namespaces: e.namespaces,
		flipped:    map[string]struct{}{},
		news:       news,
		admit:      e.admit,
		watch:      watch,
	}
	r.namespacesKnown = true
	if changes != nil {
		known, knownWatch := e.nsTable.Initialized(txn)
		if r.namespacesKnown = known; !known {
			watch.Add(knownWatch)
		}
		seq, changed := changes.Next(txn)
		watch.Add(changed)
		for change := range seq {
			if e.namespaces.update(change) {
				r.flipped[change.Object.Name] = struct{}{}
			}
		}
	}

	e.readWorkloads(txn, &r)
	e.readNews(&r)

	complete := true
	for _, f := range e.followers {
		if err := f.round(ctx, txn, &r); err != nil {
			return fmt.Errorf("exporting %s: %w", f.resource(), err)
		}
		complete = complete && f.completed()
	}
	if complete {
		select {
		case <-e.completed:
		default:
			close(e.completed)
		}
	}
	return nil
}

// readWorkloads finds out which pods say something else than before.
func (e *Exporter) readWorkloads(txn statedb.ReadTxn, r *round) {
	r.workloadsKnown = true
	for _, table := range e.decisive {
		if known, watch := table.Initialized(txn); !known {
			r.workloadsKnown = false
			r.watch.Add(watch)
		}
	}
	if e.workloads.txn = txn; !e.workloads.reads() {
		return
	}
	seq, changed := e.workloads.changes.Next(txn)
	r.watch.Add(changed)
	for change := range seq {
		r.said = append(r.said, change.Object)
	}
}

// readNews takes note of what was committed, and of what was lost: by whoever doesn't
// decide anything yet as well, since all that it decides comes later.
func (e *Exporter) readNews(r *round) {
	for _, f := range e.followers {
		for _, p := range f.places() {
			if want, ok := r.news.refills[p.name]; ok {
				p.refills, p.losses = want.calls, want.losses
			}
			for key := range r.news.settled[p.name] {
				delete(p.awaited, key)
			}
			if losses, ok := r.news.pruned[p.name]; ok {
				p.pruned, r.pruned = max(p.pruned, losses+1), true
			}
		}
	}
	for key := range r.news.released {
		e.uses.departed(key)
	}
}

// awaitSync closes synced once etcd has all that the cluster had at start.
func (e *Exporter) awaitSync(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for all that the cluster has")
	select {
	case <-ctx.Done():
		return nil
	case <-e.completed:
	}
	for _, f := range e.followers {
		health.OK(fmt.Sprintf("Waiting for %s to be written", f.resource()))
		for _, p := range f.places() {
			if err := p.AwaitComplete(ctx); err != nil {
				return nil
			}
		}
		row := e.count(f)
		e.log.Info("Exported all that the cluster has", "resource", row.Resource, "keys", row.Pushed, "onDemand", row.OnDemand)
	}
	e.log.Info("All that the cluster has is in etcd")
	health.OK("All that the cluster had at the start is in etcd: " + e.describe())
	close(e.synced)
	return nil
}

// report tells health how it goes: at once when that changes, else now and then. How much
// is exported isn't known yet when a round ends: see keepCounts.
func (e *Exporter) report(health cell.Health) {
	var problems []error
	var waiting []string
	for _, f := range e.followers {
		if count, example, err := f.problem(); count > 0 {
			problems = append(problems, fmt.Errorf("%d %s can't be encoded, %q for one: %w", count, f.resource(), example, err))
		}
		if !f.completed() {
			waiting = append(waiting, string(f.resource()))
		}
	}
	problem := errors.Join(problems...)
	status := strings.Join(waiting, ", ")
	if problem != nil {
		status = problem.Error()
	}
	if status == e.status && !e.reported.IsZero() && (status != "" || time.Since(e.reported) < reportInterval) {
		return
	}
	e.status, e.reported = status, time.Now()
	switch {
	case problem != nil:
		health.Degraded("Some objects are not exported", problem)
	case len(waiting) > 0:
		health.OK("Waiting for the complete list of " + status)
	default:
		health.OK("Exporting what changes")
	}
}

func (e *Exporter) describe() string {
	parts := make([]string, 0, len(e.followers))
	for _, f := range e.followers {
		for _, p := range f.places() {
			if !p.name.onDemand {
				parts = append(parts, fmt.Sprintf("%d %s", p.Len(), f.resource()))
			} else if e.workloads.optIn() {
				parts = append(parts, fmt.Sprintf("%d %s on demand", p.Len(), f.resource()))
			}
		}
	}
	return strings.Join(parts, ", ")
}
