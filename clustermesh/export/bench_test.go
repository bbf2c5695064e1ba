// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"strconv"
	"testing"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
)

// discard is a scope that counts.
type discard struct{ ops int }

func (d *discard) Load(context.Context) error          { return nil }
func (d *discard) Apply(ops []etcd.Op)                 { d.ops += len(ops) }
func (d *discard) CompleteAfter(uint64) bool           { return true }
func (d *discard) Await(func()) bool                   { return false }
func (d *discard) AwaitKey(string, func()) bool        { return false }
func (d *discard) AwaitComplete(context.Context) error { return nil }
func (d *discard) IsComplete() bool                    { return true }
func (d *discard) Holds(string) bool                   { return false }
func (d *discard) Len() int                            { return d.ops }

// benchRig is an exporter of so many endpoints, in 100 namespaces.
func benchRig(b *testing.B, endpoints int) (*rig, *discard) {
	counted := &discard{}
	r := newRig(b, Options{})
	r.export = newExporter(slog.New(slog.DiscardHandler), r.export.db, r.writer.Tables(), localName, Options{}, r.export.workloads.filters,
		func(placeName, func([]string)) scope { return counted })
	r.write(func(tx *state.Txn) {
		for i := range 100 {
			r.namespace(tx, "ns-"+strconv.Itoa(i), true)
		}
		ip := netip.MustParseAddr("10.0.0.0")
		for i := range endpoints {
			ip = ip.Next()
			tx.UpsertEndpoint(r.local, owner, endpoint(ip.String(), "ns-"+strconv.Itoa(i%100), "pod-"+strconv.Itoa(i)))
		}
	})
	r.initializeAll()
	return r, counted
}

// BenchmarkFirstRound is the export of everything at start; per endpoint, what
// is allocated is its value, its key and what statedb's iterator takes.
func BenchmarkFirstRound(b *testing.B) {
	const endpoints = 100_000
	r, counted := benchRig(b, endpoints)
	b.ReportAllocs()
	for b.Loop() {
		counted.ops = 0
		r.begin()
		if err := r.export.round(context.Background(), r.changes, statedb.NewWatchSet()); err != nil {
			b.Fatal(err)
		}
		for _, f := range r.export.followers {
			f.(interface{ restart() }).restart()
		}
	}
	if counted.ops < endpoints {
		b.Fatalf("%d operations", counted.ops)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/endpoints, "ns/endpoint")
}

func (f *follower[Row]) restart() { f.begun, f.complete = false, false }

// BenchmarkOneChange is a round for a change of one endpoint among many.
func BenchmarkOneChange(b *testing.B) {
	r, _ := benchRig(b, 100_000)
	r.begin()
	if err := r.export.round(context.Background(), r.changes, statedb.NewWatchSet()); err != nil {
		b.Fatal(err)
	}
	ep := endpoint("10.0.0.1", "ns-0", "pod-0")
	b.ReportAllocs()
	for b.Loop() {
		ep.Identity++
		r.write(func(tx *state.Txn) { tx.UpsertEndpoint(r.local, owner, ep) })
		if err := r.export.round(context.Background(), r.changes, statedb.NewWatchSet()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNamespaceFlip re-decides one namespace in a hundred.
func BenchmarkNamespaceFlip(b *testing.B) {
	r, _ := benchRig(b, 100_000)
	r.begin()
	if err := r.export.round(context.Background(), r.changes, statedb.NewWatchSet()); err != nil {
		b.Fatal(err)
	}
	global := true
	b.ReportAllocs()
	for b.Loop() {
		global = !global
		r.write(func(tx *state.Txn) { r.namespace(tx, "ns-7", global) })
		if err := r.export.round(context.Background(), r.changes, statedb.NewWatchSet()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUses is the memory that counting takes for each pushed endpoint, where
// pods opt in.
func BenchmarkUses(b *testing.B) {
	const endpoints = 100_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		u, ip := newUses(func(string) bool { return false }), netip.MustParseAddr("10.0.0.0")
		for i := range endpoints {
			ip = ip.Next()
			u.arrive(ip.String(), uint32(200_000+i%1000))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/endpoints, "B/endpoint")
		runtime.KeepAlive(u)
	}
}
