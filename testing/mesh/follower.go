// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
)

// Follower follows the tables of an agent and notes each row that was deleted,
// for tests in which nothing may vanish that isn't meant to. A row that goes and
// comes back between two looks is missed here and found by its revision: see
// [Agent.Revisions].
type Follower struct {
	mu   sync.Mutex
	gone []string
}

// Follow begins to follow the tables of the running agent, until the test ends.
func (a *Agent) Follow(t testing.TB) *Follower {
	t.Helper()
	f := &Follower{}
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	t.Cleanup(func() { cancel(); following.Wait() })
	for _, follow := range []func(*Follower) (func(context.Context), error){
		followTable(a.DB, a.Endpoints, endpointName),
		followTable(a.DB, a.Identities, identityName),
		followTable(a.DB, a.Nodes, nodeName),
		followTable(a.DB, a.Services, serviceName),
		followTable(a.DB, a.ServiceExports, serviceExportName),
	} {
		run, err := follow(f)
		require.NoError(t, err)
		following.Go(func() { run(ctx) })
	}
	return f
}

// Gone are the rows that were deleted, sorted, each as the table's name and the
// row's key ("endpoints 10.1.0.1/32"). It may be called from any goroutine.
func (f *Follower) Gone() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(slices.Values(f.gone))
}

func (f *Follower) add(row string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = append(f.gone, row)
}

func followTable[T any](db *statedb.DB, table statedb.Table[T], name func(T) string) func(*Follower) (func(context.Context), error) {
	return func(f *Follower) (func(context.Context), error) {
		txn := db.WriteTxn(table)
		changes, err := table.Changes(txn)
		txn.Commit()
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) {
			for {
				seq, changed := changes.Next(db.ReadTxn())
				for change := range seq {
					if change.Deleted {
						f.add(table.Name() + " " + name(change.Object))
					}
				}
				select {
				case <-ctx.Done():
					return
				case <-changed:
				}
			}
		}, nil
	}
}

// Revisions gives the revision of each row, by names as [Follower.Gone] has
// them. A row that nobody touches keeps its own.
func (a *Agent) Revisions() map[string]statedb.Revision {
	txn := a.DB.ReadTxn()
	revisions := map[string]statedb.Revision{}
	collect(revisions, txn, a.Endpoints, endpointName)
	collect(revisions, txn, a.Identities, identityName)
	collect(revisions, txn, a.Nodes, nodeName)
	collect(revisions, txn, a.Services, serviceName)
	collect(revisions, txn, a.ServiceExports, serviceExportName)
	return revisions
}

func collect[T any](revisions map[string]statedb.Revision, txn statedb.ReadTxn, table statedb.Table[T], name func(T) string) {
	for row, revision := range table.All(txn) {
		revisions[table.Name()+" "+name(row)] = revision
	}
}

func endpointName(row *state.Endpoint) string { return row.Prefix().String() }

func identityName(row *state.Identity) string { return strconv.FormatUint(uint64(row.ID), 10) }

func nodeName(row *state.Node) string { return row.Cluster + "/" + row.Name }

func serviceName(row *state.Service) string {
	return row.Cluster + "/" + row.Namespace + "/" + row.Name
}

func serviceExportName(row *state.ServiceExport) string {
	return row.Cluster + "/" + row.Namespace + "/" + row.Name
}
