// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The claims on one address form one line, ordered by Source and, within a
// Source, by age; the first of the line is the row's primary. Everything the
// design asks for follows from that order:
//
//   - what is stronger displaces at once, and the displaced claim waits as the
//     first of its own Source;
//   - within a Source, two remote clusters included, who holds the address keeps it;
//   - when the primary goes, the next one takes over in the same row change.
//
// A claim resolved on demand doesn't wait behind what is stronger: nobody watches it, so
// that by the time it took over it would be whatever was true before. It is dropped, and
// resolved again if a packet wants it.
//
// An update by the same owner keeps its place in the line. The functions here
// are pure: they take a row (nil: the address is unclaimed) and give the row
// that replaces it, which is the same pointer where nothing changes.

// upsertClaim is row after claim was made or updated.
func upsertClaim(row *Endpoint, claim *Claim) *Endpoint {
	if row == nil {
		return newEndpoint(claim, nil)
	}
	waiting := row.Waiting()
	if row.isBy(claim.Origin, claim.Owner) {
		if row.says(&claim.Endpoint) {
			return row
		}
		return newEndpoint(claim, waiting)
	}
	if i := indexOf(waiting, claim.Origin, claim.Owner); i >= 0 {
		if sameEndpoint(&waiting[i].Endpoint, &claim.Endpoint) {
			return row
		}
		waiting = slices.Clone(waiting)
		waiting[i] = copied(*claim)
		return row.withWaiting(waiting)
	}
	switch holder := row.Origin().Source; {
	case holder < SourceOnDemand && claim.Origin.Source == SourceOnDemand:
		return row
	case holder == SourceOnDemand && claim.Origin.Source < SourceOnDemand:
		return newEndpoint(claim, nil) // whatever waits is on demand as well
	case claim.Origin.Source < holder:
		return newEndpoint(claim, insertAt(waiting, 0, row.Claim()))
	}
	at := slices.IndexFunc(waiting, func(c Claim) bool { return c.Origin.Source > claim.Origin.Source })
	if at < 0 {
		at = len(waiting)
	}
	return row.withWaiting(insertAt(waiting, at, copied(*claim)))
}

// removeClaim is row after an owner gave up its claim; nil when it was the last.
func removeClaim(row *Endpoint, origin *Origin, owner Owner) *Endpoint {
	if row == nil {
		return nil
	}
	waiting := row.Waiting()
	if row.isBy(origin, owner) {
		if len(waiting) == 0 {
			return nil
		}
		return newEndpoint(&waiting[0], waiting[1:])
	}
	i := indexOf(waiting, origin, owner)
	if i < 0 {
		return row
	}
	return row.withWaiting(slices.Concat(waiting[:i], waiting[i+1:]))
}

// removeOrigin is row without any claim of origin; nil when there is no other.
func removeOrigin(row *Endpoint, origin *Origin) *Endpoint {
	waiting := row.Waiting()
	ofOrigin := func(c Claim) bool { return c.Origin == origin }
	if slices.ContainsFunc(waiting, ofOrigin) {
		waiting = slices.DeleteFunc(slices.Clone(waiting), ofOrigin)
		if row.Origin() != origin {
			return row.withWaiting(waiting)
		}
	}
	switch {
	case row.Origin() != origin:
		return row
	case len(waiting) == 0:
		return nil
	}
	return newEndpoint(&waiting[0], waiting[1:])
}

// inConflict says whether an address that origin claims is held by another
// cluster, local or remote.
func inConflict(row *Endpoint, origin *Origin) bool {
	return row.Origin().Cluster != origin.Cluster
}

// mayReplace decides for rows that have one source only. Their keys contain the
// cluster (an identity's number does, too), so two clusters never meet there;
// what meets is a row that is pushed and the same row resolved on demand, or
// rows of one cluster under its old and its new ID.
func mayReplace(holder, next *Origin) bool {
	return next.Source < holder.Source ||
		next.Source == holder.Source && next.Cluster == holder.Cluster
}

func indexOf(claims []Claim, origin *Origin, owner Owner) int {
	return slices.IndexFunc(claims, func(c Claim) bool { return c.Origin == origin && c.Owner == owner })
}

// insertAt leaves claims alone: a row that readers hold refers to it.
func insertAt(claims []Claim, at int, claim Claim) []Claim {
	out := make([]Claim, 0, len(claims)+1)
	out = append(out, claims[:at]...)
	out = append(out, claim)
	return append(out, claims[at:]...)
}

func sameEndpoint(a, b *wire.Endpoint) bool {
	return a.Prefix == b.Prefix && a.HostIP == b.HostIP && a.Identity == b.Identity &&
		a.EncryptionKey == b.EncryptionKey && a.Scope == b.Scope && a.Metadata == b.Metadata &&
		a.Namespace == b.Namespace && a.Pod == b.Pod && a.ServiceAccount == b.ServiceAccount &&
		slices.Equal(a.NamedPorts, b.NamedPorts)
}
