// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"net/netip"

	"github.com/cilium/cilium/pkg/source"
)

// handOver writes an entry in place of one that a stronger source of ours has, which the
// ipcache takes from nobody weaker: it has to be deleted first. Listeners, the datapath's
// map among them, are told of one change and of no deletion: the entry is written as the
// stronger source's, and while its source is changed another of the same prefix stands in,
// which upstream takes for the CIDR that the address hides.
//
// What is left: who asks the ipcache itself may find no entry for some microseconds, and
// in the map, where the address is part of a CIDR of its own length already (a policy's),
// that one is seen for as long, and of a row that is a CIDR nothing is.
func (b *batch) handOver(prefix netip.Prefix, e entry, from source.Source) (ports bool, err error) {
	stronger := e
	stronger.identity.Source = from
	before, err := b.upsert(stronger)
	if err != nil {
		return before, err // a still stronger one came between
	}
	standIn, hides := b.standIn(prefix, e)
	if hides {
		if _, err := b.upsert(standIn); err != nil {
			hides = false // as with any CIDR that is there
		}
	}
	b.delete(e.ip)
	ports, err = b.upsert(e)
	if hides {
		b.ipcache.Delete(standIn.ip, standIn.identity.Source) //nolint:staticcheck // see upsert
	}
	return ports || before, err
}

// standIn is an entry of the same prefix under its other name; false if there can be none,
// or if it is somebody's.
func (b *batch) standIn(prefix netip.Prefix, e entry) (entry, bool) {
	if !prefix.IsSingleIP() {
		return entry{}, false
	}
	cidr := e
	cidr.ip, cidr.metadata = prefix.String(), nil
	_, taken := b.ipcache.LookupByIP(cidr.ip) // which is exact
	return cidr, !taken
}
