// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"unique"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	benchClusters  = 510
	benchEndpoints = 500_000
	benchBatch     = 1_000
)

// benchEndpoint is the endpoint i of a mesh: 980 a cluster, 10 a node, 20
// namespaces a cluster. Its strings are its own, as a decoder makes them.
func benchEndpoint(i int) wire.Endpoint {
	var a, h [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i))
	binary.BigEndian.PutUint32(h[:], 172<<24|uint32(i/10))
	return wire.Endpoint{
		Prefix:         PrefixOf(netip.AddrFrom4(a)),
		HostIP:         netip.AddrFrom4(h),
		Identity:       uint32(i/(benchEndpoints/benchClusters)+1)<<16 | uint32(i%100+256),
		Namespace:      fmt.Sprintf("namespace-%d", i%20),
		Pod:            fmt.Sprintf("web-7c9f8d6b5-%06d", i),
		ServiceAccount: "default",
	}
}

type benchTable struct {
	*fixture
	origins []*Origin
}

func newBenchTable(b *testing.B) *benchTable {
	t := &benchTable{fixture: newFixture(b)}
	t.endpointChanges = nil
	for i := range benchClusters {
		t.origins = append(t.origins, t.w.Origin(fmt.Sprintf("cluster%d", i), uint32(i+1), SourceClusterMesh))
	}
	return t
}

func (t *benchTable) originOf(i int) *Origin {
	return t.origins[i/(benchEndpoints/benchClusters)%benchClusters]
}

func (t *benchTable) fill(n int) {
	for i := 0; i < n; i += benchBatch {
		t.do(func(tx *Txn) {
			for j := i; j < min(i+benchBatch, n); j++ {
				tx.UpsertEndpoint(t.originOf(j), Owner{}, benchEndpoint(j))
			}
		})
	}
}

// BenchmarkEndpointMemory reports what the table holds for each endpoint, all
// told: row, strings, statedb's indexes.
func BenchmarkEndpointMemory(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		before := heap()
		b.StartTimer()
		t := newBenchTable(b)
		t.fill(benchEndpoints)
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/benchEndpoints, "B/endpoint")
		runtime.KeepAlive(t)
		b.StartTimer()
	}
}

func heap() uint64 {
	var m runtime.MemStats
	// Twice: what unique holds is let go one cycle later.
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func endpointsOf(from, n int) []wire.Endpoint {
	eps := make([]wire.Endpoint, n)
	for i := range eps {
		eps[i] = benchEndpoint(from + i)
	}
	return eps
}

func perEndpoint(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/endpoint")
}

func perNode(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/node")
}

// BenchmarkUpsertEndpoints inserts 100,000 endpoints in batches of 1,000.
func BenchmarkUpsertEndpoints(b *testing.B) {
	eps := endpointsOf(0, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		t := newBenchTable(b)
		for i := 0; i < len(eps); i += benchBatch {
			tx := t.w.Begin()
			for j, ep := range eps[i : i+benchBatch] {
				tx.UpsertEndpoint(t.originOf(i+j), Owner{}, ep)
			}
			tx.Commit()
		}
	}
	perEndpoint(b, len(eps))
}

// BenchmarkUpsertEndpointsChanged changes the identities of a batch of 1,000
// among 100,000.
func BenchmarkUpsertEndpointsChanged(b *testing.B) {
	t := newBenchTable(b)
	t.fill(100_000)
	eps := endpointsOf(50_000, benchBatch)
	b.ReportAllocs()
	for b.Loop() {
		tx := t.w.Begin()
		for j := range eps {
			eps[j].Identity++
			tx.UpsertEndpoint(t.originOf(50_000+j), Owner{}, eps[j])
		}
		tx.Commit()
	}
	perEndpoint(b, benchBatch)
}

// BenchmarkUpsertEndpointsUnchanged says 1,000 among 100,000 again.
func BenchmarkUpsertEndpointsUnchanged(b *testing.B) {
	t := newBenchTable(b)
	t.fill(100_000)
	eps := endpointsOf(50_000, benchBatch)
	b.ReportAllocs()
	for b.Loop() {
		tx := t.w.Begin()
		for j := range eps {
			tx.UpsertEndpoint(t.originOf(50_000+j), Owner{}, eps[j])
		}
		tx.Commit()
	}
	perEndpoint(b, benchBatch)
}

// benchNode is the node i of a mesh, as a decoder makes it.
func benchNode(i int) wire.Node {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 172<<24|uint32(i))
	name := fmt.Sprintf("node-%05d", i)
	return wire.Node{
		Name: name, Cluster: "cluster0", ClusterID: 1, Source: "clustermesh", BootID: name,
		Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: netip.AddrFrom4(a)}},
		Labels:    map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
	}
}

// BenchmarkUpsertNodes says 1,000 nodes: new ones, with another boot ID, and as
// they were.
func BenchmarkUpsertNodes(b *testing.B) {
	nodes := make([]wire.Node, benchBatch)
	for i := range nodes {
		nodes[i] = benchNode(i)
	}
	upsert := func(t *benchTable, n int) {
		tx := t.w.Begin()
		for i := range nodes {
			node := nodes[i]
			node.BootID = fmt.Sprint(n)
			tx.UpsertNode(t.origins[0], node)
		}
		tx.Commit()
	}
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			upsert(newBenchTable(b), 0)
		}
		perNode(b, len(nodes))
	})
	b.Run("changed", func(b *testing.B) {
		t := newBenchTable(b)
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			upsert(t, n)
		}
		perNode(b, len(nodes))
	})
	b.Run("unchanged", func(b *testing.B) {
		t := newBenchTable(b)
		upsert(t, 0)
		b.ReportAllocs()
		for b.Loop() {
			upsert(t, 0)
		}
		perNode(b, len(nodes))
	})
}

// BenchmarkUpsertIdentities inserts the identities of 100 clusters, a batch each.
func BenchmarkUpsertIdentities(b *testing.B) {
	const clusters, each = 100, 100
	ids := make([]wire.Identity, clusters*each)
	for i := range ids {
		ids[i] = wire.Identity{ID: uint32(i/each+1)<<16 | uint32(i%each+256), Labels: fmt.Sprintf("k8s:app=web-%d;", i)}
	}
	b.ReportAllocs()
	for b.Loop() {
		t := newBenchTable(b)
		for c := range clusters {
			tx := t.w.Begin()
			for _, id := range ids[c*each : (c+1)*each] {
				tx.UpsertIdentity(t.origins[c], id)
			}
			tx.Commit()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ids)), "ns/identity")
}

// BenchmarkCommit is one change among 500,000 endpoints, in a transaction of its
// own: what a change costs in a quiet mesh.
func BenchmarkCommit(b *testing.B) {
	t := newBenchTable(b)
	t.fill(benchEndpoints)
	ep := benchEndpoint(250_000)
	b.ReportAllocs()
	for b.Loop() {
		ep.Identity++
		tx := t.w.Begin()
		tx.UpsertEndpoint(t.originOf(250_000), Owner{}, ep)
		tx.Commit()
	}
}

// BenchmarkDeleteOrigin drains one cluster of 980 endpoints out of 500,000: the
// price of having no index by origin.
func BenchmarkDeleteOrigin(b *testing.B) {
	t := newBenchTable(b)
	t.fill(benchEndpoints)
	for b.Loop() {
		tx := t.w.Begin()
		tx.DeleteOrigin(t.origins[7], wire.Endpoints)
		tx.Abort()
	}
}

// BenchmarkCountByOrigin is one look of a status table at 510 clusters.
func BenchmarkCountByOrigin(b *testing.B) {
	t := newBenchTable(b)
	t.fill(benchEndpoints)
	require.Len(b, t.w.CountByOrigin(), benchClusters)
	for b.Loop() {
		t.w.CountByOrigin()
	}
}

// BenchmarkIntern compares ways to keep one copy of what endpoints share, on
// what 510 clusters with 20 namespaces each have. "map" never forgets.
func BenchmarkIntern(b *testing.B) {
	t := newBenchTable(b)
	eps := endpointsOf(0, 100_000)
	b.Run("unique", func(b *testing.B) {
		kept := make([]unique.Handle[shared], len(eps))
		for i := 0; b.Loop(); i++ {
			j := i % len(eps)
			kept[j] = intern(t.originOf(j), &eps[j])
		}
	})
	b.Run("map", func(b *testing.B) {
		kept := make([]*shared, len(eps))
		known := map[shared]*shared{}
		for i := 0; b.Loop(); i++ {
			j := i % len(eps)
			key := shared{origin: t.originOf(j), namespace: eps[j].Namespace,
				serviceAccount: eps[j].ServiceAccount, ports: encodePorts(eps[j].NamedPorts)}
			s, ok := known[key]
			if !ok {
				kept := key
				s = &kept
				known[key] = s
			}
			kept[j] = s
		}
	})
}
