// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// BenchmarkHerd has 300 readers list 5,000 keys of 200 bytes at once, each over a
// connection of its own, under several bounds: when the first, the median and the
// last of them has its list, and how long a write takes meanwhile.
func BenchmarkHerd(b *testing.B) {
	const readers, keys = 300, 5000
	for _, limit := range []int{4, 16, 64, 1 << 20} {
		b.Run(fmt.Sprintf("bound=%d", limit), func(b *testing.B) {
			bound := NewListBound(limit)
			server := startServer(b, ServerConfig{GRPC: []grpc.ServerOption{bound.ServerOption()}})
			writer := clientAt(b, time.Minute, server.URL())
			scope := startWriter(b, writer).Scope(leased("p/", nil))
			scope.Apply(ops(numbered(keys, strings.Repeat("v", 200))))
			require.NoError(b, scope.Barrier(b.Context()))
			clients := make([]*Client, readers)
			for i := range clients {
				clients[i] = newTestClient(b, ClientConfig{Endpoints: []string{server.URL()}})
				_, err := clients[i].WaitReady(b.Context(), "p/x", func(error) {})
				require.NoError(b, err)
			}
			var listed, writes []time.Duration
			for b.Loop() {
				ctx, cancel := context.WithCancel(b.Context())
				var mu sync.Mutex
				var running, done sync.WaitGroup
				began := time.Now()
				for _, client := range clients {
					done.Add(1)
					reader := NewReader(ReaderConfig{Log: slog.New(slog.DiscardHandler), Prefix: "p/"},
						ObserverFunc(func(_ context.Context, batch Batch) {
							if batch.Synced {
								mu.Lock()
								listed = append(listed, time.Since(began))
								mu.Unlock()
								done.Done()
							}
						}))
					running.Go(func() { _ = reader.Run(ctx, client) }) // it ends with ctx
				}
				all := make(chan struct{})
				go func() { done.Wait(); close(all) }()
				for ended := false; !ended; {
					at := time.Now()
					_, err := writer.etcd.Put(b.Context(), "q/x", "")
					require.NoError(b, err)
					writes = append(writes, time.Since(at))
					select {
					case <-all:
						ended = true
					case <-time.After(5 * time.Millisecond):
					}
				}
				cancel()
				running.Wait()
			}
			for name, durations := range map[string][]time.Duration{"list": listed, "write": writes} {
				slices.Sort(durations)
				for _, p := range []int{50, 99} {
					b.ReportMetric(durations[len(durations)*p/100].Seconds()*1000, fmt.Sprintf("%s-p%d-ms", name, p))
				}
			}
			b.ReportMetric(float64(bound.Stats().Postponed)/float64(b.N)/readers, "postponed/reader")
		})
	}
}
