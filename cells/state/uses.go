// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import "github.com/waggle-mesh/waggle/clustermesh/wire"

// An endpoint whose identity is unknown is dropped by policy, and a source's
// endpoints and identities arrive by watches that aren't ordered among themselves. So
// an identity that its source no longer has stays for as long as an endpoint uses it.
//
// All claims count, those that wait for their address as well, and whichever origin
// they are of: one that takes over, or that was resolved on demand, needs its identity
// just the same. A count for each identity takes some 20 bytes; an endpoint has no
// part in it. Reserved identities are in no table, and aren't counted.

// ReleaseIdentity removes an identity of origin once no endpoint uses it: now, or with
// the Commit of the Txn that removes the last claim that does. An UpsertIdentity
// meanwhile keeps it.
func (tx *Txn) ReleaseIdentity(origin *Origin, id uint32) {
	if tx.usesOf(id) == 0 {
		tx.DeleteIdentity(origin, id)
		return
	}
	old, _, found := tx.w.tables.identities.Get(tx.wtxn, IdentityByID(id))
	if !found || old.Origin != origin || old.Leaving {
		return
	}
	row := *old
	row.Leaving = true
	replaceOwned(tx, tx.w.tables.identities, old, &row)
}

// HasIdentity says whether there is an identity of this number, leaving or not.
func (tx *Txn) HasIdentity(id uint32) bool {
	_, _, found := tx.w.tables.identities.Get(tx.wtxn, IdentityByID(id))
	return found
}

// use takes note that row has taken the place of old; either may be nil. It costs one
// access to a map for each, and none where the identity stays the same.
func (tx *Txn) use(old, row *Endpoint) {
	if old != nil && row != nil && old.identity == row.identity && old.waiting == nil && row.waiting == nil {
		return
	}
	// What both use must not seem unused in between.
	tx.useAll(row, 1)
	tx.useAll(old, -1)
}

func (tx *Txn) useAll(row *Endpoint, n int32) {
	if row == nil {
		return
	}
	tx.useOne(row.identity, n)
	for _, claim := range row.Waiting() {
		tx.useOne(claim.Endpoint.Identity, n)
	}
}

func (tx *Txn) useOne(id uint32, n int32) {
	if id < wire.MinIdentity {
		return
	}
	if tx.uses == nil {
		tx.uses = map[uint32]int32{}
	}
	tx.uses[id] += n
	if n < 0 && tx.usesOf(id) == 0 {
		tx.unused = append(tx.unused, id)
	}
}

func (tx *Txn) usesOf(id uint32) int32 { return tx.w.uses[id] + tx.uses[id] }

// countUses applies the changes before the Txn is committed, and removes the identities
// that were waiting for their last use to go.
func (tx *Txn) countUses() {
	for _, id := range tx.unused {
		if tx.usesOf(id) > 0 {
			continue // by another claim, made since
		}
		if row, _, found := tx.w.tables.identities.Get(tx.wtxn, IdentityByID(id)); found && row.Leaving {
			tx.DeleteIdentity(row.Origin, id)
		}
	}
	for id, n := range tx.uses {
		if n += tx.w.uses[id]; n == 0 {
			delete(tx.w.uses, id)
		} else {
			tx.w.uses[id] = n
		}
	}
}
