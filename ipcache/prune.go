// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"slices"

	"github.com/cilium/statedb"
)

// prune deletes what the map has beyond what is wanted, such as entries of an
// earlier process whose pods are gone meanwhile, and writes again what is wanted
// and isn't there, or is different.
//
// It is called when all of the tables was taken in. It reads the whole map: about
// 1 µs an entry (BenchmarkBPFAll).
func (r *reconciler) prune(txn statedb.ReadTxn) error {
	if !r.compared && !r.target.Restored() {
		// A map that began empty has nothing but what we wrote.
		r.compared = true
		return nil
	}
	right := 0
	for entry, err := range r.target.All() {
		if err != nil {
			r.updates, r.deletes = r.updates[:0], r.deletes[:0]
			return err
		}
		// Of a prefix there is one key that is ours.
		key, ok := NewKey(entry.Prefix())
		if ok && key == entry.Key {
			var c claim
			if c, ok = r.wanted.at(txn, key); ok && c.value == entry.Value {
				right++
				continue
			} else if ok {
				r.updates = append(r.updates, Entry{key, c.value})
				continue
			}
		}
		r.deletes = append(r.deletes, entry.Key)
	}
	r.compared = true

	count := 0
	for range r.wanted.all(txn) {
		count++
	}
	missing := count - right - len(r.updates) - len(r.overflow)
	if missing > 0 {
		// So rare that it isn't worth keeping what was seen: write them all.
		r.updates = slices.AppendSeq(r.updates[:0], r.wanted.all(txn))
	} else {
		// Somebody else may have made room.
		r.admit(txn, len(r.overflow))
	}
	deleted, rewritten := len(r.deletes), len(r.updates)
	r.write(txn)
	if deleted+rewritten > 0 {
		r.log.Info("Brought the ipcache map in line with the tables",
			"deleted", deleted,
			"rewritten", rewritten,
			"missing", max(missing, 0),
		)
	}
	if len(r.failed) > 0 {
		return fmt.Errorf("%d entries couldn't be put right", len(r.failed))
	}
	return nil
}
