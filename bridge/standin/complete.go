// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// completeInterval is the pause between two looks whether a table is complete: statedb
// tells when the last source of a table is, remote clusters included, and of one only
// when it is asked.
const completeInterval = 20 * time.Millisecond

// awaitComplete waits until a table has had all of this cluster once. What a list would
// give before that is less than there is, and upstream would take the rest for deleted.
func awaitComplete(ctx context.Context, db *statedb.DB, table statedb.TableMeta) error {
	ticker := time.NewTicker(completeInterval)
	defer ticker.Stop()
	for {
		txn := db.ReadTxn()
		if !slices.Contains(table.PendingInitializers(txn), ingest.LocalInitializer) {
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
