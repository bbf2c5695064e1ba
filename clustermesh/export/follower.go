// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"iter"
	"log/slog"
	"sync/atomic"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

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
	// pushed is the place of what other clusters watch, onDemand that of what they
	// look up; nil where nothing can be there.
	pushed, onDemand *place
	// moves is nil where all that is exported is pushed.
	moves *moves
	// uses is what the rows are counted in by their identity; nil is none.
	uses *uses
	// before is called before operations are applied, after when they are, and arrived
	// when the first row that uses an identity is about to be pushed; each may be nil.
	before  func()
	after   func()
	arrived func(ctx context.Context, identity uint32, txn statedb.ReadTxn, r *round) error
	// again gives keys to be decided again in a round; nil is none.
	again func(*round) map[string]struct{}
	// mayComplete says whether what an earlier process left among the pushed may be
	// deleted by now; nil is yes.
	mayComplete func() bool
	// pruned is called, from any goroutine, when that is committed; nil where nobody
	// waits for it.
	pruned func(place placeName, losses uint64)

	changes statedb.ChangeIterator[Row]
	// begun is set once the table's first content was looked at.
	begun bool
	// complete is set once everything was applied that the table held when it
	// became initialized.
	complete bool
	buf      []byte
	problems *problems
	// home are the keys of the rows that are kept by their namespace: their strings
	// and some 50 bytes each.
	home map[string]struct{}
	// The size of that, for other goroutines.
	notGlobal atomic.Int64
}

func newFollower[Row any](log *slog.Logger, c *codec[Row], table statedb.Table[Row], pushed *place) *follower[Row] {
	return &follower[Row]{
		log:      log.With("resource", c.resource),
		codec:    c,
		table:    table,
		pushed:   pushed,
		problems: newProblems(),
		home:     map[string]struct{}{},
	}
}

// tableFollower is a follower without its type parameter.
type tableFollower interface {
	resource() wire.Resource
	target() scope
	// places are the prefixes that the follower writes to, the pushed one first.
	places() []*place
	meta() statedb.TableMeta
	// start begins to follow the table. wtxn must have locked it.
	start(wtxn statedb.WriteTxn) error
	// round brings etcd to what the tables hold in txn.
	round(ctx context.Context, txn statedb.ReadTxn, r *round) error
	completed() bool
	problem() (count int, example string, err error)
	// counts and refusal are safe to call from any goroutine. refusal is why a key's row
	// couldn't be encoded, nil if it could.
	counts() (notGlobal, refused int)
	refusal(key string) error
}

// round is what followers share in one round.
type round struct {
	namespaces *namespaces
	// namespacesKnown: all namespaces are in the table.
	namespacesKnown bool
	// workloadsKnown: all that decides about endpoints and identities, beside
	// namespaces, is in its table.
	workloadsKnown bool
	// flipped are the namespaces that became global or ceased to be, and said the
	// pods that say something else than before.
	flipped map[string]struct{}
	said    []*state.Workload
	// news are the Writer's; pruned says whether in this round a place was found to
	// be rid of what was left in it.
	news   news
	pruned bool
	// admit waits while the Writer has much to write: see etcd.Writer.Admit.
	admit func(context.Context) error
	// watch gets what ends the wait for the next round.
	watch *statedb.WatchSet
}

func (f *follower[Row]) resource() wire.Resource { return f.codec.resource }
func (f *follower[Row]) target() scope           { return f.pushed }
func (f *follower[Row]) meta() statedb.TableMeta { return f.table }
func (f *follower[Row]) completed() bool         { return f.complete }

func (f *follower[Row]) problem() (count int, example string, err error) { return f.problems.first() }

func (f *follower[Row]) counts() (notGlobal, refused int) {
	return int(f.notGlobal.Load()), f.problems.count()
}

func (f *follower[Row]) refusal(key string) error { return f.problems.of(key) }

func (f *follower[Row]) places() []*place {
	if f.onDemand == nil {
		return []*place{f.pushed}
	}
	return []*place{f.pushed, f.onDemand}
}

func (f *follower[Row]) start(wtxn statedb.WriteTxn) (err error) {
	f.changes, err = f.table.Changes(wtxn)
	return err
}

func (f *follower[Row]) round(ctx context.Context, txn statedb.ReadTxn, r *round) error {
	if f.codec.namespace != nil && !r.namespacesKnown || f.codec.fate != nil && !r.workloadsKnown {
		// Deciding now would delete what an earlier process exported, only to
		// write it again a moment later. The changes wait in the table.
		return nil
	}
	initialized, initWatch := f.table.Initialized(txn)
	changes, watch := f.changes.Next(txn)
	r.watch.Add(watch)
	for change := range changes {
		if err := f.add(ctx, change.Object, change.Deleted, txn, r); err != nil {
			return err
		}
	}
	if f.begun {
		if err := f.redecide(ctx, txn, r); err != nil {
			return err
		}
	}
	f.begun = true
	refilled, err := f.refill(ctx, txn, r)
	if err != nil {
		return err
	}
	f.flush()
	f.notGlobal.Store(int64(len(f.home)))

	if !initialized {
		r.watch.Add(initWatch)
		return nil
	}
	if !f.complete {
		f.complete = true
		f.log.Info("All that the cluster has was decided on, and is being written")
		refilled = f.places()
	}
	for _, p := range refilled {
		f.due(p)
	}
	f.completePlaces(r)
	return nil
}

// redecide decides again what is affected by something else than a row's change.
func (f *follower[Row]) redecide(ctx context.Context, txn statedb.ReadTxn, r *round) error {
	if f.codec.namespace != nil && len(r.flipped) > 0 {
		for row := range f.inNamespaces(txn, r.flipped) {
			if err := f.add(ctx, row, false, txn, r); err != nil {
				return err
			}
		}
	}
	if f.codec.ofPod != nil {
		for _, pod := range r.said {
			for row := range f.codec.ofPod(f.table, txn, pod.Namespace, pod.Pod) {
				if err := f.add(ctx, row, false, txn, r); err != nil {
					return err
				}
			}
		}
	}
	for _, p := range f.places() {
		for key := range r.news.settled[p.name] {
			if err := f.addKey(ctx, key, txn, r); err != nil {
				return err
			}
		}
	}
	if f.again != nil {
		for key := range f.again(r) {
			if err := f.addKey(ctx, key, txn, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// due notes that all that belongs to a place was applied.
func (f *follower[Row]) due(p *place) {
	p.due = true
	if f.moves != nil {
		p.blocking = f.moves.blockingOf(p)
	}
}

// completePlaces completes what is due. What was looked up before and is pushed now
// goes only when that was written: in the mode in which nothing is on demand it is
// all that there was.
func (f *follower[Row]) completePlaces(r *round) {
	p := f.pushed
	if p.due && len(p.blocking) == 0 && (f.mayComplete == nil || f.mayComplete()) {
		p.due = false
		if p.CompleteAfter(p.refills) && f.pruned != nil {
			name, losses := p.name, p.losses
			if !p.Await(func() { f.pruned(name, losses) }) {
				p.pruned, r.pruned = losses+1, true
			}
		}
	}
	if p := f.onDemand; p != nil && p.due && len(p.blocking) == 0 && (f.moves != nil || f.pushed.pruned > p.losses) {
		p.due = false
		p.CompleteAfter(p.refills)
	}
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

// refill encodes again what etcd has lost, and says in which places.
func (f *follower[Row]) refill(ctx context.Context, txn statedb.ReadTxn, r *round) (places []*place, err error) {
	var all bool
	for _, p := range f.places() {
		want, ok := r.news.refills[p.name]
		if !ok {
			continue
		}
		places, all = append(places, p), all || want.all
		for key := range want.keys {
			if err := f.addKey(ctx, key, txn, r); err != nil {
				return nil, err
			}
		}
	}
	if !all {
		return places, nil
	}
	for row := range f.table.All(txn) {
		if err := f.add(ctx, row, false, txn, r); err != nil {
			return nil, err
		}
	}
	return places, nil
}

// addKey is add for the row that a key stands for, if there is one. If there isn't
// it went in the meantime, as a change says or has said; but the key may have had
// to stay then.
func (f *follower[Row]) addKey(ctx context.Context, key string, txn statedb.ReadTxn, r *round) error {
	query, ok := f.codec.find(key)
	if !ok {
		return nil
	}
	if row, _, found := f.table.Get(txn, query); found {
		return f.add(ctx, row, false, txn, r)
	}
	if f.moves != nil && f.moves.leaving[key] != nil {
		f.moves.add(key, filter.Kept, nil)
	}
	return nil
}

// add appends the operations that a row stands for. A row that can't be encoded
// is reported and passed over: it holds nothing else back.
func (f *follower[Row]) add(ctx context.Context, row Row, deleted bool, txn statedb.ReadTxn, r *round) error {
	d, ok, err := f.codec.decide(row, deleted, r.namespaces, &f.buf)
	if err != nil {
		if f.problems.add(d.key, err) {
			f.log.Warn("Not exporting an object that can't be encoded", "key", d.key, "error", err)
		}
		if f.moves != nil {
			f.moves.again(d.key, d.fate)
		}
		return nil
	}
	if !ok {
		return nil
	}
	f.problems.drop(d.key)
	if d.home {
		f.home[d.key] = struct{}{}
	} else {
		delete(f.home, d.key)
	}
	pending := 0
	if f.moves == nil {
		f.pushed.ops = append(f.pushed.ops, etcd.Op{Key: d.key, Value: d.value, Delete: d.fate == filter.Kept})
		pending = len(f.pushed.ops)
	} else {
		if f.uses != nil && d.fate == filter.Pushed {
			if identity := f.codec.identity(row); f.uses.arrive(d.key, identity) {
				if err := f.arrived(ctx, identity, txn, r); err != nil {
					return err
				}
			}
		}
		f.moves.add(d.key, d.fate, d.value)
		pending = len(f.moves.decided)
	}
	if pending < chunk {
		return nil
	}
	f.flush()
	return r.admit(ctx)
}

// flush applies what was appended, as one batch.
func (f *follower[Row]) flush() {
	if f.before != nil {
		f.before()
	}
	if f.moves == nil {
		f.pushed.apply()
		return
	}
	f.moves.flush()
	if f.after != nil {
		f.after()
	}
}
