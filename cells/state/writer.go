// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Writer is the one thing that modifies the tables. Its methods may be called
// from any goroutine.
type Writer struct {
	db     *statedb.DB
	tables tables
	metas  []statedb.TableMeta
	// uses counts the claims of each identity; it belongs to the Txn that runs.
	uses map[uint32]int32
	// gone counts the rows of workloads that are Gone; it belongs to the Txn that runs.
	gone int
	// departures are told by the Txn that runs.
	departures Departures

	mu      sync.Mutex
	origins map[Origin]*Origin
	counts  map[*Origin]Counts
	// pending are closed, and go, with the Txn that marks them done.
	pending map[initializer]chan struct{}
	none    chan struct{} // closed
}

// initializer is one of a table.
type initializer struct{ name, table string }

// NewWriter registers the tables with db. It fails when they are registered
// already: there is one Writer for a database.
func NewWriter(db *statedb.DB) (*Writer, error) { return newWriter(db, "") }

func newWriter(db *statedb.DB, prefix TablePrefix) (*Writer, error) {
	t, err := newTables(db, string(prefix))
	if err != nil {
		return nil, err
	}
	none := make(chan struct{})
	close(none)
	return &Writer{
		db:      db,
		tables:  t,
		metas:   t.all(),
		uses:    map[uint32]int32{},
		origins: map[Origin]*Origin{},
		counts:  map[*Origin]Counts{},
		pending: map[initializer]chan struct{}{},
		none:    none,
	}, nil
}

// Tables gives the tables to read.
func (w *Writer) Tables() Tables {
	return Tables{
		Endpoints:      w.tables.endpoints,
		Identities:     w.tables.identities,
		Nodes:          w.tables.nodes,
		Services:       w.tables.services,
		ServiceExports: w.tables.serviceExports,
		Namespaces:     w.tables.namespaces,
		Workloads:      w.tables.workloads,
		Exports:        w.tables.exports,
		RemoteClusters: w.tables.remoteClusters,
		Datastore:      w.tables.datastore,
	}
}

// Origin gives the one Origin of these values. Origins are kept for ever; there
// are as few as there are configured clusters.
func (w *Writer) Origin(cluster string, id uint32, source Source) *Origin {
	key := Origin{Cluster: cluster, ClusterID: id, Source: source}
	w.mu.Lock()
	defer w.mu.Unlock()
	origin, ok := w.origins[key]
	if !ok {
		origin = &key
		w.origins[key] = origin
	}
	return origin
}

// Departures tell which endpoints' rows are removed.
func (w *Writer) Departures() *Departures { return &w.departures }

// ReadTxn reads all tables as they are now, all of one moment.
func (w *Writer) ReadTxn() statedb.ReadTxn { return w.db.ReadTxn() }

// Begin starts a transaction on all tables, waiting for the one that runs.
func (w *Writer) Begin() *Txn {
	return &Txn{w: w, wtxn: w.db.WriteTxn(w.metas...)}
}

// RegisterInitializer makes the tables of these resources (Namespaces and Workloads included)
// count as initialized only once the returned function was called in a Txn that
// is committed; calling it again does nothing. It is for constructors: after
// the start readers may have seen the table as initialized. A resource that has
// no table is passed over. The name is unique among those of a table.
func (w *Writer) RegisterInitializer(name string, resources ...wire.Resource) func(*Txn) {
	wtxn := w.db.WriteTxn(w.metas...)
	defer wtxn.Commit()
	var done []mark
	register := func(table registrar) {
		m := mark{initializer{name, table.Name()}, table.RegisterInitializer(wtxn, name)}
		done = append(done, m)
		w.mu.Lock()
		w.pending[m.of] = make(chan struct{})
		w.mu.Unlock()
	}
	for _, resource := range resources {
		switch resource {
		case wire.Endpoints:
			register(w.tables.endpoints)
		case wire.Identities:
			register(w.tables.identities)
		case wire.Nodes:
			register(w.tables.nodes)
		case wire.Services:
			register(w.tables.services)
		case wire.ServiceExports:
			register(w.tables.serviceExports)
		case Namespaces:
			register(w.tables.namespaces)
		case Workloads:
			register(w.tables.workloads)
		}
	}
	// statedb remembers a mark even when its transaction is aborted, so the
	// marks wait for the Txn's Commit.
	return func(tx *Txn) { tx.initialized = append(tx.initialized, done...) }
}

// registrar is a table, whatever its rows are.
type registrar interface {
	statedb.TableMeta
	RegisterInitializer(wtxn statedb.WriteTxn, name string) func(statedb.WriteTxn)
}

// mark says that an initializer is done.
type mark struct {
	of  initializer
	set func(statedb.WriteTxn)
}

// InitializerDone is closed once the initializer of that name of a table is done, or there
// is none: a transaction that is begun after that doesn't have it among the pending ones.
// It is for after the start, when all are registered.
func (w *Writer) InitializerDone(name string, table statedb.TableMeta) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pending, ok := w.pending[initializer{name, table.Name()}]; ok {
		return pending
	}
	return w.none
}

// marked wakes those who wait for these.
func (w *Writer) marked(done []mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range done {
		if pending, ok := w.pending[m.of]; ok {
			close(pending)
			delete(w.pending, m.of)
		}
	}
}

// CountByOrigin gives the counts of every origin that holds or claims
// something. It costs as much as there are origins, whatever the tables hold.
func (w *Writer) CountByOrigin() map[*Origin]Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.counts)
}

// Counts sums up the origins of one cluster.
func (w *Writer) Counts(cluster string) Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sum Counts
	for origin, counts := range w.counts {
		if origin.Cluster == cluster {
			sum.add(&counts)
		}
	}
	return sum
}

// count applies what one Txn has changed. Differences of two Txns may be
// applied in either order.
func (w *Writer) count(changes map[*Origin]*Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for origin, change := range changes {
		counts := w.counts[origin]
		counts.add(change)
		if counts == (Counts{}) {
			delete(w.counts, origin)
		} else {
			w.counts[origin] = counts
		}
	}
}

func (c *Counts) add(d *Counts) {
	c.Endpoints += d.Endpoints
	c.Identities += d.Identities
	c.Nodes += d.Nodes
	c.Services += d.Services
	c.ServiceExports += d.ServiceExports
	c.Conflicts += d.Conflicts
}

// must turns the two errors that statedb's writes can return, both of them
// misuse (a table that isn't locked, a Txn that has ended), into a panic.
func must(err error) {
	if err != nil {
		panic(fmt.Errorf("BUG: state.Txn used after its end: %w", err))
	}
}
