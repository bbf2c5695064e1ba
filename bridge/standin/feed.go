// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"

	"github.com/cilium/statedb"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// rows is the source of objects that are made of the rows of a table.
type rows[Row any] struct {
	db     *statedb.DB
	writer *state.Writer
	table  statedb.Table[Row]
	// what names the objects.
	what string
	// keyOf is the row's own key.
	keyOf func(Row) string
	// nameOf is the name of the object that a row is a part of; empty if it is of none.
	nameOf func(Row) string
	// object makes an object of what the table has of it, or says that there is nothing.
	object func(txn statedb.ReadTxn, name string) (runtime.Object, bool)
	// bare is an object of which no more than the name is known.
	bare func(name string) runtime.Object
}

func (r *rows[Row]) name() string { return r.what }

func (r *rows[Row]) readTxn() statedb.ReadTxn { return r.db.ReadTxn() }

func (r *rows[Row]) await(ctx context.Context) error {
	return ingest.AwaitLocal(ctx, r.writer, r.table)
}

func (r *rows[Row]) open() (feed, error) {
	changes, err := follow(r.db, r.table)
	if err != nil {
		return nil, err
	}
	return &rowFeed[Row]{rows: r, changes: changes, partOf: map[string]string{}, told: map[string]struct{}{}}, nil
}

// follow gives the rows of a table and then its changes. What isn't read keeps deleted
// rows, until it is forgotten.
func follow[Row any](db *statedb.DB, table statedb.Table[Row]) (statedb.ChangeIterator[Row], error) {
	wtxn := db.WriteTxn(table)
	defer wtxn.Commit()
	changes, err := table.Changes(wtxn)
	if err != nil {
		return nil, fmt.Errorf("following the table %q: %w", table.Name(), err)
	}
	return changes, nil
}

// rowFeed turns changes of rows into those of objects. It remembers of which object a
// row was a part: one change may give an address from one pod to another.
type rowFeed[Row any] struct {
	*rows[Row]
	changes statedb.ChangeIterator[Row]
	partOf  map[string]string   // row → object
	told    map[string]struct{} // objects that the reader has
}

func (f *rowFeed[Row]) next(txn statedb.ReadTxn) ([]watch.Event, <-chan struct{}) {
	changes, more := f.changes.Next(txn)
	var names []string
	touched := map[string]struct{}{}
	touch := func(name string) {
		if _, ok := touched[name]; !ok && name != "" {
			touched[name] = struct{}{}
			names = append(names, name)
		}
	}
	for change := range changes {
		key, name := f.keyOf(change.Object), ""
		if !change.Deleted {
			name = f.nameOf(change.Object)
		}
		was := f.partOf[key]
		switch {
		case name == "":
			delete(f.partOf, key)
		case name != was:
			f.partOf[key] = name
		}
		// What an object loses is told first, and what another one gains then.
		touch(was)
		touch(name)
	}

	events := make([]watch.Event, 0, len(names))
	for _, name := range names {
		_, told := f.told[name]
		object, there := f.object(txn, name)
		switch {
		case there && told:
			events = append(events, watch.Event{Type: watch.Modified, Object: object})
		case there:
			f.told[name] = struct{}{}
			events = append(events, watch.Event{Type: watch.Added, Object: object})
		case told:
			delete(f.told, name)
			events = append(events, watch.Event{Type: watch.Deleted, Object: f.bare(name)})
		}
	}
	return events, more
}

func (f *rowFeed[Row]) added() <-chan struct{} { return nil }

func (f *rowFeed[Row]) close() {}
