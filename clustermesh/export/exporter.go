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
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// reportInterval is how often a healthy exporter says how much it exports; a
// report for each round would be a write to the health table for each batch.
const reportInterval = 10 * time.Second

// Exporter follows the state tables. It works in rounds: one round is one read
// transaction, and at most one batch for each resource.
type Exporter struct {
	log        *slog.Logger
	db         *statedb.DB
	namespaces *namespaces
	nsTable    statedb.Table[*state.Namespace]
	// followers, in the order in which a reader wants what they write.
	followers []tableFollower
	refills   *refills
	admit     func(context.Context) error
	// completed is closed when everything was applied, synced when it is in etcd.
	completed, synced chan struct{}

	// What health was last told, and when.
	status   string
	reported time.Time
}

// newExporter makes an Exporter of the cluster's rows. policy says whether a
// namespace is global; newScope makes the Scope of a resource, and is given
// what to call when etcd has lost keys of it.
func newExporter(
	log *slog.Logger, db *statedb.DB, tables state.Tables, cluster string, options Options,
	policy func(*state.Namespace) bool, newScope func(wire.Resource, func(keys []string)) scope,
) *Exporter {
	e := &Exporter{
		log:        log,
		db:         db,
		namespaces: newNamespaces(policy, options.AllNamespaces),
		nsTable:    tables.Namespaces,
		refills:    newRefills(),
		admit:      func(context.Context) error { return nil },
		completed:  make(chan struct{}),
		synced:     make(chan struct{}),
	}
	scopeOf := func(resource wire.Resource) scope {
		return newScope(resource, func(keys []string) { e.refills.ask(resource, keys) })
	}
	// In the order of wire.Resources: an endpoint is of no use before its
	// identity and node.
	for _, resource := range wire.Resources {
		if !options.exports(resource) {
			continue
		}
		switch resource {
		case wire.Identities:
			e.followers = append(e.followers, newFollower(log, identityCodec(), tables.Identities, scopeOf(resource)))
		case wire.Nodes:
			e.followers = append(e.followers, newFollower(log, nodeCodec(cluster), tables.Nodes, scopeOf(resource)))
		case wire.Endpoints:
			e.followers = append(e.followers, newFollower(log, endpointCodec(options.NamedPorts), tables.Endpoints, scopeOf(resource)))
		case wire.Services:
			e.followers = append(e.followers, newFollower(log, serviceCodec(cluster, options.AllServices), tables.Services, scopeOf(resource)))
		case wire.ServiceExports:
			e.followers = append(e.followers, newFollower(log, serviceExportCodec(cluster), tables.ServiceExports, scopeOf(resource)))
		}
	}
	return e
}

// Counts gives the number of keys in etcd by resource. It is safe to call from
// any goroutine.
func (e *Exporter) Counts() map[wire.Resource]int {
	counts := make(map[wire.Resource]int, len(e.followers))
	for _, f := range e.followers {
		counts[f.resource()] = f.target().Len()
	}
	return counts
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
			err := f.target().Load(ctx)
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
	wtxn := e.db.WriteTxn(metas...)
	defer wtxn.Commit()
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
	refills, asked := e.refills.take()
	watch.Add(asked)
	txn := e.db.ReadTxn()

	r := round{
		namespaces: e.namespaces,
		flipped:    map[string]struct{}{},
		refills:    refills,
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

// awaitSync closes synced once etcd has all that the cluster had at start.
func (e *Exporter) awaitSync(ctx context.Context, health cell.Health) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.completed:
	}
	for _, f := range e.followers {
		health.OK(fmt.Sprintf("Waiting for %s to be written", f.resource()))
		if err := f.target().AwaitComplete(ctx); err != nil {
			return nil
		}
	}
	e.log.Info("All that the cluster has is in etcd")
	close(e.synced)
	return nil
}

// report tells health how it goes: at once when that changes, else now and then.
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
		health.OK("Exporting " + e.describe())
	}
}

func (e *Exporter) describe() string {
	parts := make([]string, 0, len(e.followers))
	for _, f := range e.followers {
		parts = append(parts, fmt.Sprintf("%d %s", f.target().Len(), f.resource()))
	}
	return strings.Join(parts, ", ")
}
