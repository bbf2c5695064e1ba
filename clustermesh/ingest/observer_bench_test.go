// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// BenchmarkTakeIn takes in a list of endpoints in pages as large as a Reader's,
// from the bytes of etcd to the committed table; times are for each endpoint.
func BenchmarkTakeIn(b *testing.B) {
	const count, page = 100_000, 20_000
	events := endpointEvents(b, count)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		h, endpoints := benchmarkHandler(b)
		b.StartTimer()
		for at := 0; at < count; at += page {
			endpoints.OnBatch(b.Context(), etcd.Batch{Events: events[at : at+page], Listing: true})
		}
		b.StopTimer()
		require.Equal(b, count, h.options.Writer.Counts(peer).Endpoints)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/endpoint")
}

// endpointEvents are so many endpoints, each at an address of its own, as a list has
// them.
func endpointEvents(b *testing.B, count int) []etcd.Event {
	events := make([]etcd.Event, count)
	for i := range events {
		address := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&0xff, i&0xff)
		events[i] = etcd.Event{Key: address, Value: []byte(endpointValue(b, address, webID+uint32(i%200), fmt.Sprint("web-", i)))}
	}
	return events
}

// BenchmarkTakeInChanges takes in changes of endpoints among 100,000, one at a time
// as in a quiet mesh and 20 at a time as under load, from the bytes of etcd to the
// committed table; times are for each batch.
func BenchmarkTakeInChanges(b *testing.B) {
	const count = 100_000
	_, endpoints := benchmarkHandler(b)
	first, second := endpointEvents(b, count), endpointEvents(b, count)
	for i := range second {
		second[i].Value = []byte(endpointValue(b, second[i].Key, webID+uint32((i+1)%200), fmt.Sprint("api-", i)))
	}
	endpoints.OnBatch(b.Context(), etcd.Batch{Events: first, Listing: true})
	for _, size := range []int{1, 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				from, at := first, n%(count/size)*size
				if n/(count/size)%2 == 0 {
					from = second
				}
				endpoints.OnBatch(b.Context(), etcd.Batch{Events: from[at : at+size]})
			}
		})
	}
}

// BenchmarkTakeInNodes takes in a list of nodes; times are for each node.
func BenchmarkTakeInNodes(b *testing.B) {
	const count = 1_000
	events := make([]etcd.Event, count)
	for i := range events {
		node := wire.Node{
			Name: fmt.Sprintf("node-%04d", i), Cluster: peer, ClusterID: peerID, Source: "custom-resource", BootID: fmt.Sprint(i),
			Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}},
			PodCIDRs4: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
			Labels:    map[string]string{"kubernetes.io/hostname": fmt.Sprintf("node-%04d", i), "kubernetes.io/os": "linux"},
		}
		value, err := wire.MarshalNode(&node)
		require.NoError(b, err)
		events[i] = etcd.Event{Key: node.Name, Value: value}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		h, _ := benchmarkHandler(b)
		nodes := &observer[wire.Node]{handler: h, resource: wire.Nodes, codec: h.nodeCodec()}
		b.StartTimer()
		nodes.OnBatch(b.Context(), etcd.Batch{Events: events, Listing: true})
		b.StopTimer()
		require.Equal(b, count, h.options.Writer.Counts(peer).Nodes)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/node")
}

// BenchmarkHeldBack offers endpoints of a known identity, which go through, and of
// one that comes after 1,000 of them.
func BenchmarkHeldBack(b *testing.B) {
	const waiting = 1_000
	now := time.Now()
	endpoints := make([]wire.Endpoint, waiting)
	for i := range endpoints {
		endpoints[i] = wire.Endpoint{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), Identity: webID}
	}
	b.Run("known", func(b *testing.B) {
		h := newHeldBack(time.Hour, waiting)
		h.identityKnown(webID, nil)
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			h.offer(&endpoints[n%waiting], now)
		}
	})
	b.Run("waiting", func(b *testing.B) {
		h := newHeldBack(time.Hour, waiting)
		var through []wire.Endpoint
		b.ReportAllocs()
		for b.Loop() {
			for i := range endpoints {
				h.offer(&endpoints[i], now)
			}
			through = h.identityKnown(webID, through[:0])
			h.identityGone(webID)
		}
		require.Len(b, through, waiting)
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*waiting), "ns/endpoint")
	})
}

// benchmarkHandler is a Handler that knows the identities, and its observer of
// endpoints.
func benchmarkHandler(b *testing.B) (*handler, etcd.Observer) {
	writer, err := state.NewWriter(statedb.New())
	require.NoError(b, err)
	h := NewFactory(Options{Log: slog.New(slog.DiscardHandler), Writer: writer,
		Local: wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255}})(peer).(*handler)
	h.adopt(b.Context(), offerOf(wire.ClusterConfig{ID: peerID}))
	for i := range uint32(200) {
		h.held.identityKnown(webID+i, nil)
	}
	return h, &observer[wire.Endpoint]{handler: h, resource: wire.Endpoints, codec: h.endpointCodec()}
}
