// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/statedb"
)

// CompleteInterval is the pause between two looks whether a table is complete: statedb
// tells when the last source of a table is, remote clusters included, and of one only
// when it is asked.
const CompleteInterval = 20 * time.Millisecond

// LocalComplete says whether a table has had all of this cluster once, however long a
// remote one takes.
func LocalComplete(txn statedb.ReadTxn, table statedb.TableMeta) bool {
	return !slices.Contains(table.PendingInitializers(txn), LocalInitializer)
}

// AwaitLocal waits until a table has had all of this cluster once.
func AwaitLocal(ctx context.Context, db *statedb.DB, table statedb.TableMeta) error {
	ticker := time.NewTicker(CompleteInterval)
	defer ticker.Stop()
	for {
		txn := db.ReadTxn()
		if LocalComplete(txn, table) {
			return nil
		}
		_, all := table.Initialized(txn)
		select {
		case <-all:
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the table %q to have all of this cluster: %w", table.Name(), ctx.Err())
		}
	}
}
