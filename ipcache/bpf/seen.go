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
	if err := k.use(); err != nil {
		return err
	}
	defer k.using.RUnlock()
	failed := 0
	var first error
	var never uint64
	for _, addr := range addrs {
		// One by one: a batch can't leave alone those that there are. By pointer, since the
		// library makes garbage of what it is given by value.
		key := addr.As16()
		err := k.maps.seen.Update(&key, &never, ebpf.UpdateNoExist)
		if err == nil || errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if failed++; first == nil {
			first = fmt.Errorf("following %s: %w", addr, err)
		}
	}
	return ofSeveral(first, failed)
}

// Forget ends what Follow began.
func (k *Kernel) Forget(addrs ...netip.Addr) error {
	if err := k.use(); err != nil {
		return err
	}
	defer k.using.RUnlock()
	failed := 0
	var first error
	for _, addr := range addrs {
		key := addr.As16()
		err := k.maps.seen.Delete(&key)
		if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if failed++; first == nil {
			first = fmt.Errorf("forgetting %s: %w", addr, err)
		}
	}
	return ofSeveral(first, failed)
}

// ofSeveral names the first of several errors.
func ofSeveral(first error, count int) error {
	if count > 1 {
		return fmt.Errorf("%w, and so %d more", first, count-1)
	}
	return first
}

// LastSeen is [Kernel.EachSeen] as a map, which for 65,536 addresses makes 10 MB of garbage.
func (k *Kernel) LastSeen() (map[netip.Addr]time.Duration, error) {
	seen := map[netip.Addr]time.Duration{}
	err := k.EachSeen(func(addr netip.Addr, at time.Duration) { seen[addr] = at })
	if err != nil {
		return nil, err
	}
	return seen, nil
}

// EachSeen says when the addresses that are followed, also those that an earlier process
// followed, were last used: CLOCK_MONOTONIC, to the second; 0 is never. They come in no
// order; one that is followed or forgotten meanwhile may come or not. After an error they
// weren't all. The function must not use k.
//
// It takes some 30 ms for 65,536 of them, most of it the kernel's, and makes next to no
// garbage (BenchmarkEachSeen).
func (k *Kernel) EachSeen(each func(addr netip.Addr, at time.Duration)) error {
	if err := k.use(); err != nil {
		return err
	}
	defer k.using.RUnlock()
	b := k.seenBuffers.Get().(*seenBuffer)
	defer k.seenBuffers.Put(b)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.maps.seen.BatchLookup(&cursor, b.addrs[:], b.times[:], nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return fmt.Errorf("reading when addresses were seen: %w", err)
		}
		for i := range n {
			each(netip.AddrFrom16(b.addrs[i]).Unmap(), time.Duration(b.times[i]))
		}
		if end {
			return nil
		}
	}
}

// seenBuffer is what one system call reads.
type seenBuffer struct {
	addrs [seenBatch][16]byte
	times [seenBatch]uint64
}
