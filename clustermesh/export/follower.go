// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// scope is what is used of an etcdScope.
type scope interface {
	Load(ctx context.Context) error
	Apply(ops []etcd.Op)
	CompleteAfter(refills uint64)
	AwaitComplete(ctx context.Context) error
	Len() int
}

// chunk is how many operations are encoded before the Writer is asked whether
// it wants more. Values live from here to their commit, and 500,000 endpoints at
// once would take 200 MiB. It is etcd.DefaultOptions.MaxTxnOps, what a commit
// holds: a round of no more than that stays one batch.
const chunk = 1024

// follower exports one table. Only the exporter's job uses it, except for what
// is said to be safe.
type follower[Row any] struct {
	log   *slog.Logger
	codec *codec[Row]
	table statedb.Table[Row]
	scope scope

	changes statedb.ChangeIterator[Row]
	// begun is set once the table's first content was looked at.
	begun bool
	// complete is set once everything was applied that the table held when it
	// became initialized.
	complete bool
	// refilled is how many of the Writer's calls for a refill were seen to.
	refilled uint64
	ops      []etcd.Op
	buf      []byte
	// problems are the rows that couldn't be encoded, by key.
	problems map[string]error
}

func newFollower[Row any](log *slog.Logger, c *codec[Row], table statedb.Table[Row], s scope) *follower[Row] {
	return &follower[Row]{
		log:      log.With("resource", c.resource),
		codec:    c,
		table:    table,
		scope:    s,
		problems: map[string]error{},
	}
}

// tableFollower is a follower without its type parameter.
type tableFollower interface {
	resource() wire.Resource
	target() scope
	meta() statedb.TableMeta
	// start begins to follow the table. wtxn must have locked it.
	start(wtxn statedb.WriteTxn) error
	// round brings etcd to what the tables hold in txn.
	round(ctx context.Context, txn statedb.ReadTxn, r *round) error
	completed() bool
	problem() (count int, example string, err error)
}

// round is what followers share in one round.
type round struct {
	namespaces *namespaces
	// namespacesKnown: all namespaces are in the table.
	namespacesKnown bool
	// flipped are the namespaces that became global or ceased to be.
	flipped map[string]struct{}
	refills map[wire.Resource]refill
	// admit waits while the Writer has much to write: see etcd.Writer.Admit.
	admit func(context.Context) error
	// watch gets what ends the wait for the next round.
	watch *statedb.WatchSet
}

func (f *follower[Row]) resource() wire.Resource { return f.codec.resource }
func (f *follower[Row]) target() scope           { return f.scope }
func (f *follower[Row]) meta() statedb.TableMeta { return f.table }
func (f *follower[Row]) completed() bool         { return f.complete }

func (f *follower[Row]) start(wtxn statedb.WriteTxn) (err error) {
	f.changes, err = f.table.Changes(wtxn)
	return err
}

func (f *follower[Row]) round(ctx context.Context, txn statedb.ReadTxn, r *round) error {
	if f.codec.namespace != nil && !r.namespacesKnown {
		// Deciding now would delete what an earlier process exported, only to
		// write it again a moment later. The changes wait in the table.
		return nil
	}
	f.ops = f.ops[:0]
	initialized, initWatch := f.table.Initialized(txn)

	changes, watch := f.changes.Next(txn)
	r.watch.Add(watch)
	for change := range changes {
		if err := f.add(ctx, change.Object, change.Deleted, r); err != nil {
			return err
		}
	}
	if f.codec.namespace != nil && f.begun && len(r.flipped) > 0 {
		for row := range f.inNamespaces(txn, r.flipped) {
			if err := f.add(ctx, row, false, r); err != nil {
				return err
			}
		}
	}
	f.begun = true
	refill, refilling := r.refills[f.codec.resource]
	if refilling {
		if err := f.refill(ctx, txn, refill, r); err != nil {
			return err
		}
		f.refilled = refill.calls
	}
	f.flush()

	switch {
	case !initialized:
		r.watch.Add(initWatch)
	case !f.complete:
		f.complete = true
		f.log.Info("Exported all that the cluster has", "keys", f.scope.Len())
		f.scope.CompleteAfter(f.refilled)
	case refilling:
		f.scope.CompleteAfter(f.refilled)
	}
	return nil
}

// inNamespaces lists at least the local rows in some namespaces.
func (f *follower[Row]) inNamespaces(txn statedb.ReadTxn, names map[string]struct{}) iter.Seq[Row] {
	return func(yield func(Row) bool) {
		if f.codec.inNamespace == nil {
			for row := range f.table.All(txn) {
				if _, ok := names[f.codec.namespace(row)]; ok && !yield(row) {
					return
				}
			}
			return
		}
		for name := range names {
			for row := range f.codec.inNamespace(f.table, txn, name) {
				if !yield(row) {
					return
				}
			}
		}
	}
}

// refill encodes again what etcd has lost.
func (f *follower[Row]) refill(ctx context.Context, txn statedb.ReadTxn, want refill, r *round) error {
	if want.all {
		for row := range f.table.All(txn) {
			if err := f.add(ctx, row, false, r); err != nil {
				return err
			}
		}
		return nil
	}
	for key := range want.keys {
		query, ok := f.codec.find(key)
		if !ok {
			continue
		}
		row, _, found := f.table.Get(txn, query)
		if !found {
			continue // it went in the meantime, as a change says or has said
		}
		if err := f.add(ctx, row, false, r); err != nil {
			return err
		}
	}
	return nil
}

// add appends the operation that a row stands for. A row that can't be encoded
// is reported and passed over: it holds nothing else back.
func (f *follower[Row]) add(ctx context.Context, row Row, deleted bool, r *round) error {
	op, ok, err := f.codec.op(row, deleted, r.namespaces, &f.buf)
	if err != nil {
		if old := f.problems[op.Key]; old == nil || old.Error() != err.Error() {
			f.log.Warn("Not exporting an object that can't be encoded", "key", op.Key, "error", err)
		}
		f.problems[op.Key] = err
		return nil
	}
	if !ok {
		return nil
	}
	delete(f.problems, op.Key)
	f.ops = append(f.ops, op)
	if len(f.ops) < chunk {
		return nil
	}
	f.flush()
	return r.admit(ctx)
}

// flush applies what was appended, as one batch.
func (f *follower[Row]) flush() {
	if len(f.ops) == 0 {
		return
	}
	f.scope.Apply(f.ops)
	clear(f.ops)
	f.ops = f.ops[:0]
}

// problem names the first of the rows that couldn't be encoded.
func (f *follower[Row]) problem() (count int, example string, err error) {
	if len(f.problems) == 0 {
		return 0, "", nil
	}
	example = slices.Min(slices.Collect(maps.Keys(f.problems)))
	return len(f.problems), example, f.problems[example]
}
