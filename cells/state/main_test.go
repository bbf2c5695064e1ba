// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a Writer with its database, and sources to write as.
type fixture struct {
	db              *statedb.DB
	w               *Writer
	tables          Tables
	local           *Origin
	red, blue       *Origin
	redResolved     *Origin
	endpointChanges statedb.ChangeIterator[*Endpoint]
}

// newFixture needs no clean-up: the database isn't started, so nothing runs,
// and deleted rows are kept for the iterators.
func newFixture(t require.TestingT) *fixture {
	f := &fixture{db: statedb.New()}
	var err error
	f.w, err = NewWriter(f.db)
	require.NoError(t, err)
	f.tables = f.w.Tables()
	f.local = f.w.Origin("home", 1, SourceLocal)
	f.red = f.w.Origin("red", 2, SourceClusterMesh)
	f.blue = f.w.Origin("blue", 3, SourceClusterMesh)
	f.redResolved = f.w.Origin("red", 2, SourceOnDemand)
	wtxn := f.db.WriteTxn(f.tables.Endpoints)
	f.endpointChanges, err = f.tables.Endpoints.Changes(wtxn)
	require.NoError(t, err)
	wtxn.Commit()
	return f
}

func (f *fixture) do(fn func(tx *Txn)) {
	tx := f.w.Begin()
	defer tx.Abort()
	fn(tx)
	tx.Commit()
}

func (f *fixture) upsert(origin *Origin, owner Owner, ep wire.Endpoint) (conflict bool) {
	f.do(func(tx *Txn) { conflict = tx.UpsertEndpoint(origin, owner, ep) })
	return conflict
}

func (f *fixture) delete(origin *Origin, owner Owner, ip string) {
	f.do(func(tx *Txn) { tx.DeleteEndpoint(origin, owner, prefix(ip)) })
}

// row is nil when there is none.
func (f *fixture) row(ip string) *Endpoint {
	row, _, _ := f.tables.Endpoints.Get(f.db.ReadTxn(), EndpointByPrefix(prefix(ip)))
	return row
}

// gone lists the prefixes that a follower of the table has seen deleted since
// the last call.
func (f *fixture) gone() (prefixes []netip.Prefix) {
	changes, _ := f.endpointChanges.Next(f.db.ReadTxn())
	for change := range changes {
		if change.Deleted {
			prefixes = append(prefixes, change.Object.Prefix())
		}
	}
	return prefixes
}

func prefix(ip string) netip.Prefix { return PrefixOf(netip.MustParseAddr(ip)) }

func endpoint(ip string, identity uint32, pod string) wire.Endpoint {
	return wire.Endpoint{
		Prefix:    prefix(ip),
		HostIP:    netip.MustParseAddr("192.168.0.1"),
		Identity:  identity,
		Namespace: "default",
		Pod:       pod,
	}
}

func slice(name, pod string) Owner { return Owner{Object: "slice/default/" + name, Pod: pod} }
