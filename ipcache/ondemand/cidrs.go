// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// trust says who claims a CIDR for a cluster; what is lower stands against what is
// higher. What remote clusters say of themselves can't be checked, so that it counts
// for least, and of two that contradict each other neither is believed.
type trust uint8

const (
	// byLocal is this cluster, by its nodes or by the flag.
	byLocal trust = iota
	// byFlag is this cluster's operator about a remote cluster.
	byFlag
	// byRemote is a remote cluster, by its nodes.
	byRemote
)

// cidrClaim is one pod CIDR that somebody says is a cluster's.
type cidrClaim struct {
	prefix    netip.Prefix
	cluster   string
	clusterID uint32
	trust     trust
}

func (c cidrClaim) compare(o cidrClaim) int {
	return cmp.Or(c.prefix.Addr().Compare(o.prefix.Addr()), cmp.Compare(c.prefix.Bits(), o.prefix.Bits()),
		cmp.Compare(c.trust, o.trust), cmp.Compare(c.cluster, o.cluster), cmp.Compare(c.clusterID, o.clusterID))
}

// CIDR is a pod CIDR that isn't used, since another cluster claims part of it, or since
// part of it isn't for pods.
type CIDR struct {
	Prefix  netip.Prefix `json:"prefix"`
	Cluster string       `json:"cluster"`
	// Overlaps and With are one of those that it overlaps, and whose that is; nobody's
	// if that isn't for pods.
	Overlaps netip.Prefix `json:"overlaps"`
	With     string       `json:"with"`
}

// String is the reason why it isn't used.
func (c CIDR) String() string {
	if c.With == "" {
		return fmt.Sprintf("%s of cluster %q overlaps %s, which isn't for pods", c.Prefix, c.Cluster, c.Overlaps)
	}
	return fmt.Sprintf("%s of cluster %q overlaps %s of cluster %q", c.Prefix, c.Cluster, c.Overlaps, c.With)
}

// notForPods are addresses that mean something else on each link or host: nobody has a
// say about them.
var notForPods = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), // loopback
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"), // link-local
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8"), // multicast
}

// isForNoPods gives what of a prefix isn't for pods.
func isForNoPods(prefix netip.Prefix) (reserved netip.Prefix, ok bool) {
	for _, reserved := range notForPods {
		if reserved.Overlaps(prefix) {
			return reserved, true
		}
	}
	return netip.Prefix{}, false
}

// ownership says which cluster an address is of. It is immutable.
type ownership struct {
	// owned are sorted and disjoint: of a cluster's CIDRs within each other only the
	// outermost is there, and between clusters none overlap.
	owned   []cidrClaim
	refused []CIDR
}

// decide finds out which claims stand. Of two clusters' CIDRs that overlap, the one of
// more trust stands; of equally trusted ones none does. A claim that is refused for a
// stronger one stands in nobody's way, so that a cluster which claims the whole world,
// and with it a CIDR of ours, harms itself alone.
//
// The outcome doesn't depend on the order of the claims. It costs a sort of them, and a
// walk over what is sorted, whatever they overlap.
func decide(claims []cidrClaim) *ownership {
	claims = slices.Clone(claims)
	slices.SortFunc(claims, cidrClaim.compare)
	claims = slices.Compact(claims)

	o := &ownership{}
	for level := byLocal; level <= byRemote; level++ {
		var candidates []cidrClaim
		for _, c := range claims {
			if c.trust != level {
				continue
			}
			if reserved, ok := isForNoPods(c.prefix); ok && level == byRemote {
				o.refuse(c, cidrClaim{prefix: reserved})
			} else if stronger, ok := o.against(c); ok {
				o.refuse(c, stronger)
			} else {
				candidates = append(candidates, c)
			}
		}
		if level == byLocal {
			// They are all of one cluster.
			o.stand(candidates)
			continue
		}
		rivals := findRivals(candidates)
		o.stand(slices.Collect(func(yield func(cidrClaim) bool) {
			for i, c := range candidates {
				if rivals[i] >= 0 {
					o.refuse(c, candidates[rivals[i]])
				} else if !yield(c) {
					return
				}
			}
		}))
	}
	slices.SortFunc(o.refused, func(a, b CIDR) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
			cmp.Compare(a.Cluster, b.Cluster))
	})
	// One cluster may claim the same by two IDs for a moment, or by flag and node.
	o.refused = slices.CompactFunc(o.refused, func(a, b CIDR) bool { return a.Prefix == b.Prefix && a.Cluster == b.Cluster })
	return o
}

func (o *ownership) refuse(c, rival cidrClaim) {
	o.refused = append(o.refused, CIDR{Prefix: c.prefix, Cluster: c.cluster, Overlaps: rival.prefix, With: rival.cluster})
}

// stand adds claims that nothing of another cluster overlaps.
func (o *ownership) stand(claims []cidrClaim) {
	all := append(o.owned, claims...)
	slices.SortFunc(all, cidrClaim.compare)
	o.owned = slices.Clip(outermost(all))
}

// outermost leaves out what is within what comes before it.
func outermost(sorted []cidrClaim) []cidrClaim {
	kept := sorted[:0]
	for _, c := range sorted {
		if n := len(kept); n > 0 && kept[n-1].prefix.Contains(c.prefix.Addr()) {
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// against is one of those that stand, of another cluster, that overlaps c.
func (o *ownership) against(c cidrClaim) (cidrClaim, bool) {
	// The one that may hold c's first address, and those after it that begin within c.
	from := max(o.search(c.prefix.Addr()), 0)
	for _, other := range o.owned[from:] {
		switch {
		case other.prefix.Overlaps(c.prefix):
			if !other.sameCluster(c) {
				return other, true
			}
		case c.prefix.Addr().Less(other.prefix.Addr()):
			return cidrClaim{}, false
		}
	}
	return cidrClaim{}, false
}

func (c cidrClaim) sameCluster(o cidrClaim) bool {
	return c.cluster == o.cluster && c.clusterID == o.clusterID
}

// search is the index of the last of owned that begins at addr or before; -1 is none.
func (o *ownership) search(addr netip.Addr) int {
	i, found := slices.BinarySearchFunc(o.owned, addr, func(c cidrClaim, addr netip.Addr) int {
		return c.prefix.Addr().Compare(addr)
	})
	if found {
		return i
	}
	return i - 1
}

// owner is the claim that stands for an address. It allocates nothing.
func (o *ownership) owner(addr netip.Addr) (cidrClaim, bool) {
	if i := o.search(addr); i >= 0 && o.owned[i].prefix.Contains(addr) {
		return o.owned[i], true
	}
	return cidrClaim{}, false
}

// remote is what the kernel is to look at: cluster IDs by CIDR.
func (o *ownership) remote() map[netip.Prefix]uint32 {
	cidrs := map[netip.Prefix]uint32{}
	for _, c := range o.owned {
		if c.trust != byLocal {
			cidrs[c.prefix] = c.clusterID
		}
	}
	return cidrs
}

// findRivals gives for each of the sorted claims the index of one of another cluster
// that overlaps it, or -1. Prefixes overlap only by one being within the other, so that
// one walk with a stack of what the present one is within finds them all.
//
// Of what is within a claim it suffices to know two of different clusters: one of them
// isn't its own. So each is told of what is within it at most twice, and the walk is
// linear, even for a source that claims all lengths of one prefix.
func findRivals(sorted []cidrClaim) []int {
	const none = -1
	type found struct {
		parent int
		// outer is the nearest claim around it of another cluster.
		outer int
		// inner are two claims within it, of different clusters.
		inner [2]int
	}
	all := make([]found, len(sorted))
	top := none
	for i, c := range sorted {
		for top != none && !sorted[top].prefix.Contains(c.prefix.Addr()) {
			top = all[top].parent
		}
		all[i] = found{parent: top, outer: none, inner: [2]int{none, none}}
		if top != none {
			if all[i].outer = top; sorted[top].sameCluster(c) {
				all[i].outer = all[top].outer
			}
		}
		for up := top; up != none; up = all[up].parent {
			inner := &all[up].inner
			if inner[0] == none {
				inner[0] = i
			} else if inner[1] == none && !sorted[inner[0]].sameCluster(c) {
				inner[1] = i
			} else {
				break // and so it is with what is around that one
			}
		}
		top = i
	}
	rivals := make([]int, len(sorted))
	for i, f := range all {
		rivals[i] = f.outer
		for _, inner := range f.inner {
			if rivals[i] == none && inner != none && !sorted[inner].sameCluster(sorted[i]) {
				rivals[i] = inner
			}
		}
	}
	return rivals
}
