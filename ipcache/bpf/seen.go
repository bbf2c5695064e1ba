// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// seenBatch is how many addresses are read with one system call.
const seenBatch = 4096

// Follow has the kernel note when packets to or from these addresses pass, from now on.
// One that is followed already keeps its time.
func (k *Kernel) Follow(addrs ...netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		err := k.maps.seen.Update(addr.As16(), uint64(0), ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			errs = append(errs, fmt.Errorf("following %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// Forget ends what Follow began.
func (k *Kernel) Forget(addrs ...netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		if err := k.maps.seen.Delete(addr.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forgetting %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// LastSeen is when the addresses that are followed, also those that an earlier process
// followed, were last used: CLOCK_MONOTONIC, to the second; 0 is never. Reading 65,536
// of them takes some 70 ms and 10 MB (BenchmarkLastSeen): for every few seconds.
func (k *Kernel) LastSeen() (map[netip.Addr]time.Duration, error) {
	seen := map[netip.Addr]time.Duration{}
	var cursor ebpf.MapBatchCursor
	addrs, times := make([][16]byte, seenBatch), make([]uint64, seenBatch)
	for {
		n, err := k.maps.seen.BatchLookup(&cursor, addrs, times, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return nil, fmt.Errorf("reading when addresses were seen: %w", err)
		}
		for i := range n {
			seen[netip.AddrFrom16(addrs[i]).Unmap()] = time.Duration(times[i])
		}
		if end {
			return seen, nil
		}
	}
}
