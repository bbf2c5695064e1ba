// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"
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

// SetCIDRs has the programs look at these remote pod CIDRs, of clusters with these IDs,
// and at no others. It writes what differs from what there was, which at first is what
// an earlier process left. After an error some of it may be written; the next call sets
// it right.
func (k *Kernel) SetCIDRs(wanted map[netip.Prefix]uint32) error {
	for prefix, id := range wanted {
		if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() || id == 0 {
			return fmt.Errorf("%s of cluster %d isn't a pod CIDR", prefix, id)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cidrs == nil {
		cidrs, err := k.readCIDRs()
		if err != nil {
			return err
		}
		k.cidrs = cidrs
	}
	// What is new comes first, so that an address that stays is never in neither.
	var errs []error
	for prefix, id := range wanted {
		if k.cidrs[prefix] == id {
			continue
		}
		if err := k.maps.cidrs.Put(newCIDRKey(prefix), id); err != nil {
			errs = append(errs, fmt.Errorf("adding the pod CIDR %s: %w", prefix, err))
			continue
		}
		k.cidrs[prefix] = id
	}
	for prefix := range maps.Clone(k.cidrs) {
		if _, ok := wanted[prefix]; ok {
			continue
		}
		if err := k.maps.cidrs.Delete(newCIDRKey(prefix)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("removing the pod CIDR %s: %w", prefix, err))
			continue
		}
		delete(k.cidrs, prefix)
	}
	return errors.Join(errs...)
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
