// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkChartLimits writes with the limits that upstream's chart gives its containers
// (etcd.qps=20 for clustermesh, 100 for kvstoremesh) to an etcd with its own default of
// operations in a transaction, as the chart's: what is sustained, and how long it takes
// until a watcher has a key at a given rate of changes. Each iteration is a second of
// changes, or 10,000 keys at once. Run it with -benchtime 10x.
func BenchmarkChartLimits(b *testing.B) {
	start := func(b *testing.B, qps int) *Scope {
		options := DefaultOptions
		options.QPS = qps
		url := startServer(b, ServerConfig{maxTxnOps: defaultTxnOps}).URL()
		c := newTestClient(b, ClientConfig{Endpoints: []string{url}, LeaseTTL: time.Minute, Options: options})
		s := startWriter(b, c).Scope(leased("p/", nil))
		// The limit of the etcd is found out, and the leases are there.
		s.Apply(ops(numbered(2000, "before")))
		require.NoError(b, s.Barrier(b.Context()))
		return s
	}
	value := func() []byte { return fmt.Appendf(nil, "%0190d", time.Now().UnixNano()) }
	for _, qps := range []int{20, 100} {
		b.Run(fmt.Sprintf("qps=%d/sustained", qps), func(b *testing.B) {
			const batch = 10_000
			s := start(b, qps)
			n := 0
			for b.Loop() {
				keys := make([]Op, batch)
				for i := range keys {
					keys[i] = Op{Key: fmt.Sprintf("%d.%d", n, i), Value: value()}
				}
				s.Apply(keys)
				require.NoError(b, s.Barrier(b.Context()))
				n += batch
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "keys/s")
		})
		for _, changes := range []int{500, 5000} {
			b.Run(fmt.Sprintf("qps=%d/changes=%d", qps, changes), func(b *testing.B) {
				s := start(b, qps)
				watch := s.w.client.etcd.Watch(b.Context(), "p/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
				require.True(b, (<-watch).Created)
				delays := make(chan []time.Duration)
				total := b.N * changes
				go func() {
					var all []time.Duration
					for answer := range watch {
						now := time.Now().UnixNano()
						for _, event := range answer.Events {
							var written int64
							if _, err := fmt.Sscan(strings.TrimLeft(string(event.Kv.Value), "0"), &written); err == nil {
								all = append(all, time.Duration(now-written))
							}
						}
						if len(all) >= total {
							break
						}
					}
					delays <- all
				}()
				pace := time.NewTicker(10 * time.Millisecond)
				defer pace.Stop()
				b.ResetTimer()
				began := time.Now()
				for n := 0; n < total; { // each key once, so that none replaces another that waits
					<-pace.C
					due := min(int(time.Since(began).Seconds()*float64(changes)), total)
					batch := make([]Op, 0, due-n)
					for ; n < due; n++ {
						batch = append(batch, Op{Key: fmt.Sprint(n), Value: value()})
					}
					s.Apply(batch)
				}
				all := <-delays
				require.Len(b, all, total)
				slices.Sort(all)
				b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "keys/s")
				b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
			})
		}
	}
}
