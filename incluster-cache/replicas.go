// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// replica is one etcd of the cache, each with revisions of its own.
type replica struct {
	// endpoint is the URL as it was configured; TLS expects its host's name.
	endpoint string
	// address is what is dialled: host:port, or unix:….
	address string
}

// ranked gives the replicas in the order in which an agent on this node prefers
// them: by rendezvous hashing, so that nodes spread evenly, that those which lose
// their replica spread evenly over the others, and that no node changes its mind
// about two replicas because of a third. Each node comes to the same order again
// after a restart. replicas is not modified.
func ranked(node string, replicas []replica) []replica {
	weigh := func(r replica) uint64 { return xxhash.Sum64String(node + "\x00" + r.address) }
	out := slices.Clone(replicas)
	slices.SortFunc(out, func(a, b replica) int {
		if byWeight := cmp.Compare(weigh(b), weigh(a)); byWeight != 0 {
			return byWeight
		}
		return cmp.Compare(a.address, b.address)
	})
	return out
}
