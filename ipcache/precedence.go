// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"cmp"
	"slices"

	"github.com/waggle-mesh/waggle/cells/state"
)

// kind is what a claim on a prefix is made for; a lower value is stronger.
type kind uint8

const (
	kindEndpoint kind = iota
	kindNode
	kindCIDR
	kindOutside
)

// String is the kind as the table shows it.
func (k kind) String() string {
	return [...]string{"endpoint", "node", "pod-cidr", "outside"}[k]
}

// owner is who makes a claim, compared by pointer: one for all endpoints (their
// table has one row a prefix), one for what is outside, and one for each node.
type owner struct {
	name string
}

// claim is one owner's statement about one prefix.
//
// Where several claim a prefix, the strongest source wins, so that no remote
// cluster can redefine an address of the local one, or "outside"; within a
// source, an endpoint beats a node's address, which beats a pod CIDR; between
// equals, whoever was first keeps the prefix. The others wait.
type claim struct {
	owner  *owner
	source state.Source
	kind   kind
	value  Value
}

// compare is negative if c is stronger than other.
func (c claim) compare(other claim) int {
	return cmp.Or(cmp.Compare(c.source, other.source), cmp.Compare(c.kind, other.kind))
}

// withClaim is claims, the winner first, with one owner's claim added, or
// replaced in its place. It returns a new slice.
func withClaim(claims []claim, c claim) []claim {
	out := make([]claim, len(claims), len(claims)+1)
	copy(out, claims)
	if i := indexOf(out, c.owner); i >= 0 {
		out[i] = c
	} else {
		out = append(out, c)
	}
	slices.SortStableFunc(out, claim.compare)
	return out
}

// withoutClaim is claims without one owner's. It returns a new slice.
func withoutClaim(claims []claim, by *owner) []claim {
	out := make([]claim, 0, len(claims))
	for _, c := range claims {
		if c.owner != by {
			out = append(out, c)
		}
	}
	return out
}

func indexOf(claims []claim, by *owner) int {
	return slices.IndexFunc(claims, func(c claim) bool { return c.owner == by })
}
