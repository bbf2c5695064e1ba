// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// BenchmarkTakeIn takes in a list of endpoints in pages as large as a Reader's,
// from the bytes of etcd to the committed table; times are for each endpoint.
func BenchmarkTakeIn(b *testing.B) {
	const count, page = 100_000, 20_000
	events := make([]etcd.Event, count)
	for i := range events {
		address := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&0xff, i&0xff)
		events[i] = etcd.Event{Key: address, Value: []byte(endpointValue(b, address, webID+uint32(i%200), fmt.Sprint("web-", i)))}
	}
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

// benchmarkHandler is a Handler that knows the identities, and its observer of
// endpoints.
func benchmarkHandler(b *testing.B) (*handler, etcd.Observer) {
	writer, err := state.NewWriter(statedb.New())
	require.NoError(b, err)
	h := NewFactory(Options{Log: slog.New(slog.DiscardHandler), Writer: writer,
		Local: wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255}})(peer).(*handler)
	h.adopt(b.Context(), remote.Connection{Cluster: peer, Config: wire.ClusterConfig{ID: peerID}})
	for i := range uint32(200) {
		h.held.identityKnown(webID+i, nil)
	}
	return h, &observer[wire.Endpoint]{handler: h, resource: wire.Endpoints, codec: h.endpointCodec()}
}
