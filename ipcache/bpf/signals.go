// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// SignalIPCacheMiss numbers the signal, SIGNAL_IPCACHE_MISS in c/maps.h: Cilium can't
// come to use this number, since it keeps a set of its own in 64 bits.
const SignalIPCacheMiss = 64

// signalNone is a record that turned out to have no signal.
const signalNone = 1<<32 - 1

var errNoSignal = errors.New("a record without a signal")

// The numbers of families in keys of the ipcache, and in signals.
const (
	familyIPv4 = 1
	familyIPv6 = 2
)

// maxBatch bounds what is handed over at once, so that the first of many signals isn't
// kept waiting by the last.
const maxBatch = 256

// Read hands over signals as they come, those first that came while nobody read, until
// ctx ends, of which it returns the error. The slice is handle's until it returns; while
// it runs, signals gather in the ring buffer. There is one reader at a time: another
// gets [ErrReading].
//
// It makes no garbage: some 150 ns for each signal of many, and a system call to wait for
// the first (BenchmarkRead).
func (k *Kernel) Read(ctx context.Context, handle func([]Miss)) error {
	if !k.reading.TryLock() {
		return ErrReading
	}
	defer k.reading.Unlock()
	reader, err := k.newReader()
	if err != nil {
		return fmt.Errorf("opening the ring buffer: %w", err)
	}
	defer reader.Close()
	defer context.AfterFunc(ctx, func() { reader.Close() })()

	var record ringbuf.Record
	batch := make([]Miss, 0, maxBatch)
	for ctx.Err() == nil {
		err := reader.ReadInto(&record)
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
		case err != nil:
			return fmt.Errorf("reading the ring buffer: %w", err)
		default:
			switch miss, err := decode(record.RawSample); {
			case err == nil:
				batch = append(batch, miss)
			case !errors.Is(err, errNoSignal):
				k.log.Warn("Ignoring what isn't a signal", "error", err)
			}
			if record.Remaining > 0 && len(batch) < maxBatch {
				continue
			}
		}
		if len(batch) > 0 {
			handle(batch)
			batch = batch[:0]
		}
	}
	return ctx.Err()
}

// newReader maps the ring buffer into memory, where it stays whatever becomes of k.
func (k *Kernel) newReader() (*ringbuf.Reader, error) {
	if err := k.use(); err != nil {
		return nil, err
	}
	defer k.using.RUnlock()
	return ringbuf.NewReader(k.maps.misses)
}

// decode reads a signal as the program writes it, by the layout that the object says it
// has.
func decode(raw []byte) (Miss, error) {
	var s missIpcacheMiss
	if len(raw) != int(unsafe.Sizeof(s)) {
		return Miss{}, fmt.Errorf("a signal of %d bytes", len(raw))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&s)), unsafe.Sizeof(s)), raw)
	if s.SignalNr == signalNone {
		return Miss{}, errNoSignal
	}
	if s.SignalNr != SignalIPCacheMiss {
		return Miss{}, fmt.Errorf("a signal with number %d", s.SignalNr)
	}
	miss := Miss{
		Addr:      netip.AddrFrom16(s.Addr.Bytes),
		Identity:  s.Identity,
		ClusterID: s.ClusterId,
		Side:      Side(s.Side),
		Interface: s.Ifindex,
		Time:      time.Duration(s.Time),
	}
	switch s.Family {
	case familyIPv4:
		miss.Addr = miss.Addr.Unmap()
	case familyIPv6:
	default:
		return Miss{}, fmt.Errorf("a signal for family %d", s.Family)
	}
	return miss, nil
}
