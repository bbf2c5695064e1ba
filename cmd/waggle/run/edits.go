// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// editPatience is how long an edit is waited for in another cluster's map.
	editPatience = 10 * time.Second
	// editsShown bounds the addresses of one edit that are followed; a large
	// edit is measured by these.
	editsShown = 32
)

// followEdits reports for each edit of a cluster's manifests when it is in the
// maps of all others, until ctx ends.
func followEdits(ctx context.Context, t *truth, others []Place, report func(string)) error {
	txn := t.db.WriteTxn(t.endpoints)
	changes, err := t.endpoints.Changes(txn)
	txn.Commit()
	if err != nil {
		return fmt.Errorf("following the manifests of %s: %w", t.place.Cluster.Name, err)
	}
	for first := true; ; first = false {
		batch, changed := changes.Next(t.db.ReadTxn())
		var edits []wanted
		for change := range batch {
			edits = append(edits, newWanted(change))
		}
		if len(edits) > 0 && !first {
			reportEdits(ctx, t, edits, others, report)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// reportEdits measures from when the file was written until each map has it.
func reportEdits(ctx context.Context, t *truth, edits []wanted, others []Place, report func(string)) {
	began := t.edited()
	if since := time.Since(began); since < 0 || since > editPatience {
		began = time.Now() // an old file was moved here
	}
	followed := edits[:min(len(edits), editsShown)]
	took := make([]string, len(others))
	var wg sync.WaitGroup
	for i, other := range others {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, editPatience)
			defer cancel()
			for _, edit := range followed {
				err := poll(ctx, func() bool {
					entry, err := lookup(other.Shells[partAgent], edit.addr)
					return err == nil && edit.matches(entry)
				})
				if err != nil {
					took[i] = fmt.Sprintf("%s: not yet after %v", other.Cluster.Name, editPatience)
					return
				}
			}
			took[i] = fmt.Sprintf("%s after %.0f ms", other.Cluster.Name, float64(time.Since(began).Microseconds())/1000)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	report(fmt.Sprintf("%s edited: %s; in the maps of %s", t.place.Cluster.Name, describe(edits), strings.Join(took, ", ")))
}

func describe(edits []wanted) string {
	first := edits[0]
	text := fmt.Sprintf("%s (%s) has identity %s", first.addr, first.name, first.identity)
	if first.gone {
		text = fmt.Sprintf("%s (%s) is gone", first.addr, first.name)
	}
	if n := len(edits) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}
