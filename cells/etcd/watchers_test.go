// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkWatchers is what a change costs that 300 watchers are told of, each over a
// connection of its own, by etcd's client as it comes and by ours: processor time of
// etcd and the watchers together, which share this process, for each message.
func BenchmarkWatchers(b *testing.B) {
	const watchers = 300
	for name, connect := range map[string]func(url string) *clientv3.Client{
		"plain": func(url string) *clientv3.Client {
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
			require.NoError(b, err)
			b.Cleanup(func() { _ = c.Close() })
			return c
		},
		"ours": func(url string) *clientv3.Client {
			return newTestClient(b, ClientConfig{Endpoints: []string{url}}).etcd
		},
	} {
		b.Run(name, func(b *testing.B) {
			server := startServer(b, ServerConfig{})
			writer := newTestClient(b, ClientConfig{Endpoints: []string{server.URL()}}).etcd
			var told atomic.Int64
			all := make(chan struct{}, 1) // one change at a time
			for range watchers {
				watch := connect(server.URL()).Watch(b.Context(), "p/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
				require.True(b, (<-watch).Created)
				go func() {
					for range watch {
						if told.Add(1)%watchers == 0 {
							all <- struct{}{}
						}
					}
				}()
			}
			var n int64
			pace := time.NewTicker(20 * time.Millisecond) // as commits come, not back to back
			defer pace.Stop()
			before := processorTime(b)
			for b.Loop() {
				n++
				_, err := writer.Put(b.Context(), "p/x", fmt.Sprint(n))
				require.NoError(b, err)
				<-all
				<-pace.C
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(n*watchers), "µs-CPU/message")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
