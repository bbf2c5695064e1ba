// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// countedTable counts how often somebody looks at a table.
type countedTable struct {
	statedb.TableMeta
	looks atomic.Int64
}

func (c *countedTable) Name() statedb.TableName {
	c.looks.Add(1)
	return c.TableMeta.Name()
}

func (c *countedTable) PendingInitializers(txn statedb.ReadTxn) []string {
	c.looks.Add(1)
	return c.TableMeta.PendingInitializers(txn)
}

// TestAwaitLocal: those who wait sleep until the table is complete as to this cluster,
// with a remote one that never comes, and all see it then.
func TestAwaitLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waiters = 10
		writer, err := state.NewWriter(statedb.New())
		require.NoError(t, err)
		complete := writer.RegisterInitializer(LocalInitializer, wire.CacheResources...)
		writer.RegisterInitializer("clustermesh", wire.Resources...)
		table := &countedTable{TableMeta: writer.Tables().Endpoints}
		ended := make(chan error, waiters)
		for range waiters {
			go func() {
				err := AwaitLocal(t.Context(), writer, table)
				if err == nil && !LocalComplete(writer.ReadTxn(), writer.Tables().Endpoints) {
					t.Error("it isn't complete")
				}
				ended <- err
			}()
		}
		synctest.Wait()
		require.Empty(t, ended)
		require.LessOrEqual(t, table.looks.Load(), int64(2*waiters))

		impatient, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = AwaitLocal(impatient, writer, table)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, `"endpoints"`)
		require.Empty(t, ended, "a minute later")
		require.LessOrEqual(t, table.looks.Load(), int64(2*(waiters+1)+1), "they sleep meanwhile; the impatient one has named it")

		tx := writer.Begin()
		complete(tx)
		tx.Commit()
		for range waiters {
			require.NoError(t, <-ended)
		}
		require.NoError(t, AwaitLocal(impatient, writer, table), "it is, whatever the time")
	})
}
