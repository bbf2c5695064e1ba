// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"iter"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Entry is what is known of one key, as its etcd has it.
type Entry struct {
	// Key is below the resource's prefix. A key occurs twice where its row is that of
	// an earlier value and the present one Waits: the row comes first.
	Key   string
	Value []byte
	// Waits is set for an endpoint that is held back, and not in the table; and for an
	// identity that its etcd no longer has, and that waits for the last endpoint that
	// uses it to go.
	Waits bool
}

// Saved is what a cluster's Readers had delivered at one moment and what became of
// it: for each resource a Position, and entries that are all that an etcd at that
// Position has told, no more and no less. That is so because
//
//   - a Reader gives a Position only where its Observer has been told all up to it
//     and nothing after it (etcd.Batch.Position): not in the course of a list, nor
//     before the source is complete;
//   - the rows of a batch are committed, the endpoints among them that wait are
//     taken in, and the Position is noted, all under the handler's lock, under which
//     the tables' snapshot, those that wait and the Positions are taken as well; and
//     nobody else writes rows of this origin.
//
// So a watch from the Position brings each change that isn't in the entries, once
// and in its order, the deletions with it: none is lost, and no row takes on a value
// that it had before. A list finds by the entries, which the Reader is told of, what
// is gone.
//
// What the Reader has delivered isn't always what is in the tables. An endpoint that
// waits for its identity is an entry of its own. An identity that was deleted and is
// still used is marked, by which it goes in its time: no watch tells of it again. A value that was refused has
// left the row of the value before, or none: that is what is in force, and so it is
// after a restore; a list that finds the refused value still there has it looked at
// once more, since it isn't what the entry says.
//
// Entries are encoded anew from the rows. Should that give other bytes than etcd has,
// a list tells of that key once more, and the row stays as it is.
//
// TestSavedAgainstModel holds all of this against random histories.
type Saved struct {
	tables    state.Tables
	txn       statedb.ReadTxn
	origin    *state.Origin
	positions []SavedPosition
	waiting   []wire.Endpoint
}

// SavedPosition is how far one resource was read.
type SavedPosition struct {
	Resource wire.Resource `json:"resource"`
	Position etcd.Position `json:"position"`
}

// save gives what there is now; nil unless every resource that is read is at a
// Position. It costs next to nothing: the tables are immutable.
func (h *handler) save() *Saved {
	h.mu.Lock()
	defer h.mu.Unlock()
	saved := &Saved{tables: h.options.Writer.Tables()}
	for _, s := range h.streams {
		if !s.enabled {
			continue
		}
		if s.position == nil {
			return nil
		}
		saved.positions = append(saved.positions, SavedPosition{s.resource, *s.position})
	}
	if len(saved.positions) == 0 {
		return nil
	}
	// The origin is set, before there are any streams.
	saved.origin, saved.waiting, saved.txn = h.origin, h.held.waiting(nil), h.options.Writer.ReadTxn()
	return saved
}

// Positions are those of the resources that are read, in the order in which they are
// to be restored: an endpoint comes after its identity.
func (s *Saved) Positions() []SavedPosition { return s.positions }

// Entries hands each entry of a resource to fn, until that fails. Neither the key nor
// the value is to be kept. For a resource that has no table there are none.
//
// It walks over the whole table, rows of other clusters included, and allocates
// nothing for an endpoint without named ports beyond what it needs for the first one
// (BenchmarkSavedEntries).
func (s *Saved) Entries(resource wire.Resource, fn func(Entry) error) error {
	switch resource {
	case wire.Identities:
		return entriesOf(s.tables.Identities.List(s.txn, state.IdentitiesByCluster(s.origin.Cluster)),
			func(row *state.Identity) bool { return row.Origin == s.origin },
			func(row *state.Identity) (Entry, error) {
				return Entry{Key: wire.IdentityKey(row.ID), Value: []byte(row.Labels), Waits: row.Leaving}, nil
			}, fn)
	case wire.Nodes:
		return entriesOf(s.tables.Nodes.Prefix(s.txn, state.NodesByCluster(s.origin.Cluster)),
			func(row *state.Node) bool { return row.Origin == s.origin },
			func(row *state.Node) (Entry, error) {
				value, err := wire.MarshalNode(&row.Node)
				return Entry{Key: row.Name, Value: value}, err
			}, fn)
	case wire.Endpoints:
		return s.endpoints(fn)
	case wire.Services:
		return entriesOf(s.tables.Services.All(s.txn),
			func(row *state.Service) bool { return row.Origin == s.origin },
			func(row *state.Service) (Entry, error) {
				value, err := wire.MarshalService(row.Service)
				return Entry{Key: wire.ServiceKey(row.Namespace, row.Name), Value: value}, err
			}, fn)
	case wire.ServiceExports:
		return entriesOf(s.tables.ServiceExports.All(s.txn),
			func(row *state.ServiceExport) bool { return row.Origin == s.origin },
			func(row *state.ServiceExport) (Entry, error) {
				value, err := wire.MarshalServiceExport(row.ServiceExport)
				return Entry{Key: wire.ServiceKey(row.Namespace, row.Name), Value: value}, err
			}, fn)
	}
	return nil
}

func (s *Saved) endpoints(fn func(Entry) error) error {
	var value []byte
	entry := func(ep *wire.Endpoint, waits bool) (err error) {
		if value, err = wire.AppendEndpoint(value[:0], ep); err != nil {
			return err
		}
		return fn(Entry{Key: wire.EndpointKey(ep.Prefix), Value: value, Waits: waits})
	}
	for row := range s.tables.Endpoints.All(s.txn) {
		if row.Origin() == s.origin {
			ep := row.Endpoint()
			if err := entry(&ep, false); err != nil {
				return err
			}
			continue
		}
		// It may stand behind another cluster's claim.
		for _, claim := range row.Waiting() {
			if claim.Origin != s.origin {
				continue
			}
			if err := entry(&claim.Endpoint, false); err != nil {
				return err
			}
		}
	}
	for i := range s.waiting {
		if err := entry(&s.waiting[i], true); err != nil {
			return err
		}
	}
	return nil
}

// entriesOf hands on the rows of one origin.
func entriesOf[Row any](rows iter.Seq2[Row, statedb.Revision], mine func(Row) bool,
	encode func(Row) (Entry, error), fn func(Entry) error) error {
	for row := range rows {
		if !mine(row) {
			continue
		}
		entry, err := encode(row)
		if err != nil {
			return err
		}
		if err := fn(entry); err != nil {
			return err
		}
	}
	return nil
}
