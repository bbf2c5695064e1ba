// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// BenchmarkPipeline takes endpoints from their table into the map: written in
// transactions of 5,000, until the last one is in the map.
func BenchmarkPipeline(b *testing.B) {
	const n, perTxn = 100_000, 5_000
	entries := numbered(b, n)
	for _, backend := range []string{BackendMemory, BackendBPF} {
		b.Run(backend, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				cfg := memoryConfig(n + 1)
				if backend == BackendBPF {
					cfg = bpfConfig(b, n+1)
				}
				r := newRunning(b, openByFlag, cfg)
				r.start(b)
				r.committed(b, "0.0.0.0/0", identityWorld)
				b.StartTimer()
				for start := 0; start < n; start += perTxn {
					r.do(func(tx *state.Txn) {
						for _, entry := range entries[start : start+perTxn] {
							tx.UpsertEndpoint(r.there, state.Owner{}, wire.Endpoint{
								Prefix: entry.Prefix(), Identity: entry.Identity, HostIP: entry.TunnelEndpoint(),
							})
						}
					})
				}
				last := entries[n-1]
				r.committed(b, last.Prefix().String(), last.Identity)
				b.StopTimer()
				r.stop(b)
				b.StartTimer()
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkLookup finds addresses in a map of 100,000.
func BenchmarkLookup(b *testing.B) {
	const n = 100_000
	entries := numbered(b, n)
	for _, m := range []Map{newMemoryMap(n), tempBPF(b, n)} {
		require.Nil(b, m.Update(entries))
		b.Run(fmt.Sprintf("%T", m), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				if _, ok := m.Lookup(entries[i%n].Prefix().Addr()); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}
