// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/proto"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// BenchmarkWatchers is what a commit of 20 changes costs that 300 watchers are told of, each
// over a connection of its own, by etcd's client and codec as they come and by ours:
// processor time of etcd and the watchers together, which share this process, for each
// message.
func BenchmarkWatchers(b *testing.B) {
	const watchers, changes = 300, 20
	plain := func(b *testing.B, url string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
		require.NoError(b, err)
		b.Cleanup(func() { _ = c.Close() })
		return c
	}
	ours := func(b *testing.B, url string) *clientv3.Client {
		return newTestClient(b, ClientConfig{Endpoints: []string{url}}).etcd
	}
	etcds := []grpc.ServerOption{grpc.ForceServerCodec(etcdCodec{})}
	for _, as := range []struct {
		name    string
		connect func(*testing.B, string) *clientv3.Client
		options []grpc.ServerOption
	}{
		{"plain", plain, etcds},
		{"our-client", ours, etcds},
		{"our-client-and-codec", ours, nil},
	} {
		b.Run(as.name, func(b *testing.B) {
			server := startServer(b, ServerConfig{GRPC: as.options})
			writer := newTestClient(b, ClientConfig{Endpoints: []string{server.URL()}}).etcd
			var told atomic.Int64
			all := make(chan struct{}, 1) // one commit at a time
			for range watchers {
				watch := as.connect(b, server.URL()).Watch(b.Context(), "p/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
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
				ops := make([]clientv3.Op, changes)
				for i := range ops {
					ops[i] = clientv3.OpPut(fmt.Sprint("p/", i), strings.Repeat(fmt.Sprint(n%10), 190))
				}
				_, err := writer.Txn(b.Context()).Then(ops...).Commit()
				require.NoError(b, err)
				<-all
				<-pace.C
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(n*watchers), "µs-CPU/message")
		})
	}
}

// etcdCodec encodes as etcd's server does by itself, which keeps its codec to itself.
type etcdCodec struct{}

func (etcdCodec) Name() string { return proto.Name }

func (etcdCodec) Marshal(v any) ([]byte, error) {
	return protobuf.Marshal(protoadapt.MessageV2Of(v.(protoadapt.MessageV1)))
}

func (etcdCodec) Unmarshal(data []byte, v any) error {
	return protobuf.Unmarshal(data, protoadapt.MessageV2Of(v.(protoadapt.MessageV1)))
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
