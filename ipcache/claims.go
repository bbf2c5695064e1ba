// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"cmp"
	"slices"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// kind is what a claim on a prefix is made for; a lower value is stronger.
type kind uint8

const (
	kindEndpoint kind = iota
	kindNode
	kindCIDR
	kindOutside
)

// String names the kind.
func (k kind) String() string {
	return [...]string{"endpoint", "node", "pod-cidr", "outside"}[k]
}

// owner is who makes a claim that isn't an endpoint's: a node, or the agent
// itself for what is outside. Owners are compared by pointer.
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

// claims are all claims that aren't an endpoint's: what nodes give, and what is
// outside. They are kept apart from endpoints, whose table has one row a prefix
// and is large, whereas a node gives a handful of entries. It does no I/O.
type claims struct {
	// strongest has, for each prefix, the claim that wins.
	strongest map[Key]claim
	// contested has, for each prefix that more than one claims, all claims, the
	// winner first. It is small: addresses rarely have two owners.
	contested map[Key][]claim
	// nodes is what each node gives, to find what is gone when it changes.
	nodes map[string]knownNode
}

type knownNode struct {
	owner   *owner
	entries []nodeEntry
}

func newClaims() *claims {
	return &claims{strongest: map[Key]claim{}, contested: map[Key][]claim{}, nodes: map[string]knownNode{}}
}

// putNode takes in what a node gives, withdraws what it gave before and doesn't
// any more, and appends the keys of both to touched.
func (c *claims) putNode(touched []Key, node *state.Node, entries []nodeEntry) []Key {
	name := nodeName(&node.Node)
	old, ok := c.nodes[name]
	if !ok {
		old.owner = &owner{name}
	}
	for _, entry := range entries {
		touched = c.put(touched, entry.Key, claim{old.owner, node.Origin.Source, entry.kind, entry.Value})
	}
	for _, entry := range old.entries {
		if !hasKey(entries, entry.Key) {
			touched = c.drop(touched, entry.Key, old.owner)
		}
	}
	c.nodes[name] = knownNode{old.owner, entries}
	return touched
}

// dropNode withdraws what a node gave and appends its keys to touched.
func (c *claims) dropNode(touched []Key, node *state.Node) []Key {
	name := nodeName(&node.Node)
	known := c.nodes[name]
	delete(c.nodes, name)
	for _, entry := range known.entries {
		touched = c.drop(touched, entry.Key, known.owner)
	}
	return touched
}

// put makes a claim, or changes what its owner claimed of the prefix before.
func (c *claims) put(touched []Key, key Key, made claim) []Key {
	old, ok := c.strongest[key]
	all := c.contested[key]
	if ok && (all != nil || old.owner != made.owner) {
		if all == nil {
			all = []claim{old}
		}
		all = withClaim(all, made)
		c.contested[key] = all
		made = all[0]
	}
	if ok && old == made {
		return touched
	}
	c.strongest[key] = made
	return append(touched, key)
}

// drop removes an owner's claim, if it has one.
func (c *claims) drop(touched []Key, key Key, by *owner) []Key {
	all, ok := c.contested[key]
	if !ok {
		if c.strongest[key].owner == by {
			delete(c.strongest, key)
			touched = append(touched, key)
		}
		return touched
	}
	all = withoutClaim(all, by)
	if len(all) > 1 {
		c.contested[key] = all
	} else {
		delete(c.contested, key)
	}
	c.strongest[key] = all[0]
	return append(touched, key)
}

// withClaim is claims, the winner first, with one owner's claim added, or
// replaced in its place. It returns a new slice.
func withClaim(claims []claim, c claim) []claim {
	out := make([]claim, len(claims), len(claims)+1)
	copy(out, claims)
	if i := slices.IndexFunc(out, func(of claim) bool { return of.owner == c.owner }); i >= 0 {
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

func nodeName(n *wire.Node) string { return n.Cluster + "/" + n.Name }

func hasKey(entries []nodeEntry, key Key) bool {
	return slices.ContainsFunc(entries, func(e nodeEntry) bool { return e.Key == key })
}
