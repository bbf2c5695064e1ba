// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"net/netip"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// tables are those of an agent in the cluster west, with remote rows among them.
type tables struct {
	db            *statedb.DB
	writer        *state.Writer
	local, remote *state.Origin
	complete      func(*state.Txn)
}

func newTables(t *testing.T) *tables {
	db := statedb.New()
	require.NoError(t, db.Start())
	t.Cleanup(func() { require.NoError(t, db.Stop()) })
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	return &tables{
		db: db, writer: writer,
		local:    writer.Origin("west", 2, state.SourceLocal),
		remote:   writer.Origin("north", 1, state.SourceClusterMesh),
		complete: writer.RegisterInitializer(ingest.LocalInitializer, wire.CacheResources...),
	}
}

// commit runs one transaction.
func (s *tables) commit(changes ...func(*state.Txn)) {
	tx := s.writer.Begin()
	for _, change := range changes {
		change(tx)
	}
	tx.Commit()
}

// endpoint is one of a pod in the namespace meadow.
func endpoint(pod, address, node string) wire.Endpoint {
	return wire.Endpoint{
		Prefix: state.PrefixOf(netip.MustParseAddr(address)), HostIP: netip.MustParseAddr(node),
		Identity: 131500, Namespace: "meadow", Pod: pod,
		NamedPorts: []wire.NamedPort{{Name: "web", Port: 80, Protocol: "TCP"}},
	}
}

func (s *tables) upsert(origin *state.Origin, e wire.Endpoint) func(*state.Txn) {
	return func(tx *state.Txn) { tx.UpsertEndpoint(origin, state.Owner{}, e) }
}

func (s *tables) remove(origin *state.Origin, e wire.Endpoint) func(*state.Txn) {
	return func(tx *state.Txn) { tx.DeleteEndpoint(origin, state.Owner{}, e.Prefix) }
}
