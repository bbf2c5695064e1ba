// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestFeedTellsAll: who follows knows in the end what the table has, whenever it began and
// however changes and its reading fall together.
func TestFeedTellsAll(t *testing.T) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	tables := writer.Tables()
	nodes := newFeed(db, tables.Nodes,
		func(n *state.Node) string { return n.Cluster }, func(n *state.Node) string { return n.Name },
		func(txn statedb.ReadTxn, cluster string) iter.Seq2[*state.Node, statedb.Revision] {
			return func(yield func(*state.Node, statedb.Revision) bool) {
				for row, revision := range tables.Nodes.All(txn) {
					if row.Cluster == cluster && !yield(row, revision) {
						return
					}
				}
			}
		})
	ctx, cancel := context.WithCancel(t.Context())
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer cancel()
	jobs.Go(func() { _ = nodes.run(ctx, discardHealth{}) })

	// Node n of north is there at the end if n is odd; "last" comes last.
	origin, other := writer.Origin("north", 1, state.SourceClusterMesh), writer.Origin("south", 2, state.SourceClusterMesh)
	const count, readers = 200, 4
	jobs.Go(func() {
		for n := range count {
			tx := writer.Begin()
			tx.UpsertNode(origin, wire.Node{Cluster: "north", Name: fmt.Sprint(n)})
			tx.UpsertNode(other, wire.Node{Cluster: "south", Name: fmt.Sprint(n)})
			if n > 0 && n%2 == 1 {
				tx.DeleteNode(origin, "north", fmt.Sprint(n-1))
			}
			tx.Commit()
		}
		tx := writer.Begin()
		tx.UpsertNode(origin, wire.Node{Cluster: "north", Name: "last"})
		tx.Commit()
	})
	var following sync.WaitGroup
	for range readers {
		following.Go(func() {
			rows, stop := nodes.follow("north")
			defer stop()
			known := map[string]bool{}
			for {
				pending, _ := rows.take()
				for key, c := range pending {
					if c.row.Cluster != "north" {
						t.Errorf("node %s of %s", key, c.row.Cluster)
					}
					known[key] = !c.deleted
				}
				if known["last"] {
					break
				}
				<-rows.wake
			}
			for n := range count {
				if known[fmt.Sprint(n)] != (n%2 == 1) {
					t.Errorf("node %d is known: %v", n, known[fmt.Sprint(n)])
				}
			}
		})
	}
	following.Wait()
}

// discardHealth is for a job whose health no test looks at.
type discardHealth struct{ cell.Health }

func (discardHealth) OK(string) {}
