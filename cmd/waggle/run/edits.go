// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package run

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

const (
	// editPatience is how long an edit is waited for in another cluster's map.
	editPatience = 10 * time.Second
	// editsShown bounds the addresses of one edit that are followed; a large
	// edit is measured by these.
	editsShown = 32
)

// edit is what an edit means for one address.
type edit struct {
	wanted
	row *state.Endpoint
}

// followEdits reports for each edit of a cluster's manifests when it is in the
// maps of all others, until ctx ends.
func followEdits(ctx context.Context, t *truth, others []Place, report func(string)) error {
	failed := func(err error) error {
		return fmt.Errorf("following the manifests of %s: %w", t.place.Cluster.Name, err)
	}
	wtxn := t.db.WriteTxn(t.endpoints, t.namespaces, t.workloads)
	endpoints, err := t.endpoints.Changes(wtxn)
	if err != nil {
		wtxn.Abort()
		return failed(err)
	}
	namespaces, err := t.namespaces.Changes(wtxn)
	if err != nil {
		wtxn.Abort()
		return failed(err)
	}
	workloads, err := t.workloads.Changes(wtxn)
	if err != nil {
		wtxn.Abort()
		return failed(err)
	}
	wtxn.Commit()
	for first := true; ; first = false {
		txn := t.db.ReadTxn()
		watch := statedb.NewWatchSet()
		var edits []edit
		seen := map[netip.Prefix]bool{}
		add := func(row *state.Endpoint, gone bool) {
			if !seen[row.Prefix()] {
				seen[row.Prefix()] = true
				edits = append(edits, edit{newWanted(row, gone), row})
			}
		}
		changed, endpointsWatch := endpoints.Next(txn)
		for change := range changed {
			add(change.Object, change.Deleted)
		}
		// What a pod or its namespace says may concern all of its endpoints.
		said, workloadsWatch := workloads.Next(txn)
		for change := range said {
			for row := range t.endpoints.List(txn, state.LocalEndpointsByPod(change.Object.Namespace, change.Object.Pod)) {
				add(row, false)
			}
		}
		flipped, namespacesWatch := namespaces.Next(txn)
		for change := range flipped {
			for row := range t.endpoints.Prefix(txn, state.LocalEndpointsByNamespace(change.Object.Name)) {
				add(row, false)
			}
		}
		if len(edits) > 0 && !first {
			reportEdits(ctx, t, edits, others, report)
		}
		watch.Add(endpointsWatch, workloadsWatch, namespacesWatch)
		if _, err := watch.Wait(ctx, 0); err != nil {
			return nil // the run ends
		}
	}
}

// reportEdits measures from when the file was written until each map has it.
func reportEdits(ctx context.Context, t *truth, edits []edit, others []Place, report func(string)) {
	began := t.edited()
	if since := time.Since(began); since < 0 || since > editPatience {
		began = time.Now() // an old file was moved here
	}
	followed := edits[:min(len(edits), editsShown)]
	took := make([]string, len(others))
	txn := t.db.ReadTxn()
	var wg sync.WaitGroup
	for i, other := range others {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, editPatience)
			defer cancel()
			kept := 0 // by filters
			for _, edit := range followed {
				want := edit.wanted
				if !want.gone && !t.isFor(txn, edit.row, other.Cluster) {
					want.gone = true
					kept++
				}
				err := poll(ctx, func() bool {
					entry, err := lookup(other.Shells[partAgent], want.addr)
					return err == nil && want.matches(entry)
				})
				if err != nil {
					took[i] = fmt.Sprintf("%s: not yet after %v", other.Cluster.Name, editPatience)
					return
				}
			}
			took[i] = fmt.Sprintf("%s after %.0f ms", other.Cluster.Name, float64(time.Since(began).Microseconds())/1000)
			if kept > 0 {
				took[i] += fmt.Sprintf(" (%d kept out by filters)", kept)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	report(fmt.Sprintf("%s edited: %s; in the maps of %s", t.place.Cluster.Name, describe(edits), strings.Join(took, ", ")))
}

func describe(edits []edit) string {
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
