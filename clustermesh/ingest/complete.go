// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

// LocalComplete says whether a table has had all of this cluster once, however long a
// remote one takes.
func LocalComplete(txn statedb.ReadTxn, table statedb.TableMeta) bool {
	return !slices.Contains(table.PendingInitializers(txn), LocalInitializer)
}

// LocalDone is closed once a table has had all of this cluster: LocalComplete is true of
// each transaction that is begun after that. The cache may be away for long and those who
// wait be many, each endpoint of the node among them, so that nobody is woken before. It
// is for after the start.
func LocalDone(writer *state.Writer, table statedb.TableMeta) <-chan struct{} {
	return writer.InitializerDone(LocalInitializer, table)
}

// AwaitLocal waits for LocalDone.
func AwaitLocal(ctx context.Context, writer *state.Writer, table statedb.TableMeta) error {
	done := LocalDone(writer, table)
	select {
	case <-done:
		return nil
	default:
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the table %q to have all of this cluster: %w", table.Name(), ctx.Err())
	}
}
