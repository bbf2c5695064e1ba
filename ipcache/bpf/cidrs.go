// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// cidrKey is a key of the remote pod CIDRs, laid out as one of the ipcache.
type cidrKey struct {
	// PrefixLen counts the 32 bits between it and IP too.
	PrefixLen uint32
	ClusterID uint16
	Pad       uint8
	Family    uint8
	IP        [16]byte
}

const staticPrefixBits = 32

func newCIDRKey(prefix netip.Prefix) cidrKey {
	key := cidrKey{PrefixLen: staticPrefixBits + uint32(prefix.Bits()), Family: familyIPv6}
	if prefix.Addr().Is4() {
		ip := prefix.Addr().As4()
		copy(key.IP[:], ip[:])
		key.Family = familyIPv4
	} else {
		key.IP = prefix.Addr().As16()
	}
	return key
}

func (k cidrKey) prefix() netip.Prefix {
	bits := int(k.PrefixLen) - staticPrefixBits
	if k.Family == familyIPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(k.IP[:4])), bits)
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.IP), bits)
}

// podCIDR is one of the remote pod CIDRs.
type podCIDR struct {
	prefix    netip.Prefix
	clusterID uint32
}

func (c podCIDR) valid() bool {
	return c.prefix.IsValid() && c.prefix == c.prefix.Masked() && !c.prefix.Addr().Is4In6() && c.clusterID != 0
}

// compareCIDRs puts the wider ones first.
func compareCIDRs(a, b podCIDR) int {
	return cmp.Or(cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), a.prefix.Addr().Compare(b.prefix.Addr()))
}

// SetCIDRs has the programs look at these remote pod CIDRs, of clusters with these IDs,
// and at no others. It writes what differs from what there was, which at first is what
// an earlier process left.
//
// What isn't a pod CIDR, doesn't fit ([ErrNoRoom]) or can't be written is in the error,
// with the first of each and their number, and keeps none of the others out: if there is
// no room for all, clusters have equal shares of it, each with its widest CIDRs, and a
// cluster that doesn't use its share up leaves the rest to the others. The next call
// tries again what failed, and writes nothing for what didn't fit.
func (k *Kernel) SetCIDRs(wanted map[netip.Prefix]uint32) error {
	if err := k.use(); err != nil {
		return err
	}
	defer k.using.RUnlock()
	k.cidrsMu.Lock()
	defer k.cidrsMu.Unlock()
	if k.cidrs == nil {
		cidrs, err := k.readCIDRs()
		if err != nil {
			return err
		}
		k.cidrs = cidrs
	}

	capacity := int(k.maps.cidrs.MaxEntries())
	fitting, unfit := fit(wanted, capacity)
	var added, removed []podCIDR
	for prefix, id := range fitting {
		if k.cidrs[prefix] != id {
			added = append(added, podCIDR{prefix, id})
		}
	}
	for prefix, id := range k.cidrs {
		if _, ok := fitting[prefix]; !ok {
			removed = append(removed, podCIDR{prefix, id})
		}
	}
	slices.SortFunc(added, compareCIDRs)
	slices.SortFunc(removed, compareCIDRs)

	failed := &refusals{what: "can't be written"}
	// What is new comes first, so that an address that stays is never in neither; if there
	// is room for both.
	if len(k.cidrs)+len(added) <= capacity {
		k.addCIDRs(added, failed)
		k.removeCIDRs(removed, failed)
	} else {
		k.removeCIDRs(removed, failed)
		k.addCIDRs(added, failed)
	}
	return errors.Join(unfit, failed.err())
}

// fit is what can be used of what is wanted, and what is wrong with the rest. Nearly
// always it is all, and the same map.
func fit(wanted map[netip.Prefix]uint32, capacity int) (map[netip.Prefix]uint32, error) {
	invalid, unfit := &refusals{what: "aren't pod CIDRs"}, &refusals{what: "don't fit", reason: ErrNoRoom}
	for prefix, id := range wanted {
		if c := (podCIDR{prefix, id}); !c.valid() {
			invalid.add(c)
		}
	}
	if invalid.count == 0 && len(wanted) <= capacity {
		return wanted, nil
	}
	clusters := map[uint32][]podCIDR{}
	for prefix, id := range wanted {
		if c := (podCIDR{prefix, id}); c.valid() {
			clusters[id] = append(clusters[id], c)
		}
	}
	fitting := map[netip.Prefix]uint32{}
	for _, c := range shares(clusters, capacity, unfit) {
		fitting[c.prefix] = c.clusterID
	}
	return fitting, errors.Join(invalid.err(), unfit.err())
}

// shares is what is used of what clusters want: everything, or for each as much as for
// any other that wants as much. It doesn't depend on the order of maps.
func shares(clusters map[uint32][]podCIDR, capacity int, unfit *refusals) (fitting []podCIDR) {
	// Who wants least comes first, and leaves the rest of its share to the others.
	ids := slices.SortedFunc(maps.Keys(clusters), func(a, b uint32) int {
		return cmp.Or(cmp.Compare(len(clusters[a]), len(clusters[b])), cmp.Compare(a, b))
	})
	for i, id := range ids {
		cidrs := clusters[id]
		slices.SortFunc(cidrs, compareCIDRs)
		share := min(len(cidrs), (capacity-len(fitting))/(len(ids)-i))
		fitting = append(fitting, cidrs[:share]...)
		for _, c := range cidrs[share:] {
			unfit.add(c)
		}
	}
	return fitting
}

// cidrBatch is how many CIDRs are read or written with one system call.
const cidrBatch = 4096

// addCIDRs writes them in batches. Where that fails, or kernels can't, it goes on one by
// one, and ends where there is no room.
func (k *Kernel) addCIDRs(cidrs []podCIDR, failed *refusals) {
	keys, ids := make([]cidrKey, 0, cidrBatch), make([]uint32, 0, cidrBatch)
	full := false
	for chunk := range slices.Chunk(cidrs, cidrBatch) {
		keys, ids = keys[:0], ids[:0]
		for _, c := range chunk {
			keys, ids = append(keys, newCIDRKey(c.prefix)), append(ids, c.clusterID)
		}
		together := false
		if !full && len(chunk) > 1 {
			_, err := k.maps.cidrs.BatchUpdate(keys, ids, nil)
			together = err == nil
		}
		for i, c := range chunk {
			if full {
				failed.add(c)
				continue
			}
			if !together {
				if err := k.maps.cidrs.Put(keys[i], ids[i]); err != nil {
					failed.because(c, err)
					full = errors.Is(err, unix.ENOSPC)
					continue
				}
			}
			k.cidrs[c.prefix] = c.clusterID
		}
	}
}

// removeCIDRs is the opposite.
func (k *Kernel) removeCIDRs(cidrs []podCIDR, failed *refusals) {
	keys := make([]cidrKey, 0, cidrBatch)
	for chunk := range slices.Chunk(cidrs, cidrBatch) {
		keys = keys[:0]
		for _, c := range chunk {
			keys = append(keys, newCIDRKey(c.prefix))
		}
		together := false
		if len(chunk) > 1 {
			_, err := k.maps.cidrs.BatchDelete(keys, nil)
			together = err == nil
		}
		for i, c := range chunk {
			if !together {
				if err := k.maps.cidrs.Delete(keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					failed.because(c, err)
					continue
				}
			}
			delete(k.cidrs, c.prefix)
		}
	}
}

// CIDRs are the pod CIDRs that the programs look at, as this or an earlier process has
// said.
func (k *Kernel) CIDRs() (map[netip.Prefix]uint32, error) {
	if err := k.use(); err != nil {
		return nil, err
	}
	defer k.using.RUnlock()
	k.cidrsMu.Lock()
	defer k.cidrsMu.Unlock()
	return k.readCIDRs()
}

// readCIDRs is what the kernel has.
func (k *Kernel) readCIDRs() (map[netip.Prefix]uint32, error) {
	cidrs := map[netip.Prefix]uint32{}
	var key cidrKey
	var id uint32
	entries := k.maps.cidrs.Iterate()
	for entries.Next(&key, &id) {
		cidrs[key.prefix()] = id
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading the pod CIDRs: %w", err)
	}
	return cidrs, nil
}

// refusals count the CIDRs that something is wrong with. There may be any number, of
// which the least is named.
type refusals struct {
	what   string
	count  int
	first  podCIDR
	reason error // why, if that is known
}

func (r *refusals) add(c podCIDR) {
	if r.count++; r.count == 1 || cmp.Or(cmp.Compare(c.clusterID, r.first.clusterID), compareCIDRs(c, r.first)) < 0 {
		r.first = c
	}
}

// because adds one whose reason is known.
func (r *refusals) because(c podCIDR, err error) {
	if r.add(c); r.first == c {
		r.reason = err
	}
}

func (r *refusals) err() error {
	switch {
	case r.count == 0:
		return nil
	case r.reason == nil:
		return fmt.Errorf("%d that %s, such as %s of cluster %d", r.count, r.what, r.first.prefix, r.first.clusterID)
	}
	return fmt.Errorf("%d pod CIDRs that %s, such as %s of cluster %d: %w", r.count, r.what, r.first.prefix, r.first.clusterID, r.reason)
}
