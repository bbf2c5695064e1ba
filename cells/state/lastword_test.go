// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// lastWords are the rows of workloads by "namespace/pod".
func (f *fixture) lastWords() map[string]Workload {
	rows := map[string]Workload{}
	for row := range f.tables.Workloads.All(f.db.ReadTxn()) {
		rows[podKey(row.Namespace, row.Pod)] = *row
	}
	return rows
}

func regional(pod string) Workload {
	return Workload{Namespace: "default", Pod: pod, Workload: filter.Workload{Scope: wire.ScopeRegional, ScopeFrom: filter.AsLabel}}
}

// TestLastWordGoesWithTheLastEndpoint: within the same transaction, and no sooner.
func TestLastWordGoesWithTheLastEndpoint(t *testing.T) {
	f := newFixture(t)
	a, ces := Owner{Object: "endpoint/default/a"}, slice("ces", "a")
	f.upsert(f.local, a, endpoint(ip, 300, "a"))
	f.upsert(f.local, a, endpoint("fd00::1", 300, "a"))
	f.do(func(tx *Txn) { tx.UpsertWorkload(regional("a")) })

	gone := regional("a")
	gone.Gone = true
	f.do(func(tx *Txn) { tx.ReleaseWorkload("default", "a") })
	require.Equal(t, map[string]Workload{"default/a": gone}, f.lastWords())
	require.Equal(t, []string{"default", "a", "", "regional", "true", ""}, gone.TableRow())
	before := f.tables.Workloads.Revision(f.db.ReadTxn())
	f.do(func(tx *Txn) { tx.ReleaseWorkload("default", "a"); tx.ReleaseWorkload("default", "b") })
	require.Equal(t, before, f.tables.Workloads.Revision(f.db.ReadTxn()))

	// Another pod waits for one address and gets it, and the other one moves to a slice.
	f.upsert(f.local, Owner{Object: "endpoint/default/b"}, endpoint(ip, 300, "b"))
	f.delete(f.local, a, ip)
	f.do(func(tx *Txn) {
		tx.DeleteEndpoint(f.local, a, prefix("fd00::1"))
		tx.UpsertEndpoint(f.local, ces, endpoint("fd00::1", 300, "a"))
	})
	require.Contains(t, f.lastWords(), "default/a")

	// That another cluster has the address as well doesn't count.
	f.upsert(f.red, Owner{}, endpoint("fd00::1", 300, "a"))
	aborted := f.w.Begin()
	aborted.DeleteEndpoint(f.local, ces, prefix("fd00::1"))
	aborted.Abort()
	require.Contains(t, f.lastWords(), "default/a")
	f.delete(f.local, ces, "fd00::1")
	require.Empty(t, f.lastWords())
	require.Zero(t, f.w.gone)
}

// TestLastWordsFollowTheirPods has pods and endpoints change at random: a row is there
// while its pod says something, and after the pod's deletion while it has endpoints.
func TestLastWordsFollowTheirPods(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t)
		rows := map[string]Workload{}
		address := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "fd00::1"})
		pod := rapid.SampledFrom([]string{"x", "y", "x-y"})
		origin := rapid.SampledFrom([]*Origin{f.local, f.local, f.red})
		owner := func(o *Origin, pod string) Owner {
			if o != f.local {
				return Owner{}
			}
			return Owner{Object: "endpoint/default/" + pod}
		}
		change := func(t *rapid.T, tx *Txn, rows map[string]Workload) {
			p := pod.Draw(t, "pod")
			switch rapid.SampledFrom([]string{"says", "silent", "gone", "gone", "upsert", "upsert", "delete", "drain"}).Draw(t, "change") {
			case "says":
				w := Workload{Namespace: "default", Pod: p, Workload: filter.Workload{Sync: rapid.Bool().Draw(t, "sync"), SyncFrom: filter.AsLabel},
					Gone: rapid.Bool().Draw(t, "ignored")}
				tx.UpsertWorkload(w)
				w.Gone = false
				rows["default/"+p] = w
			case "silent":
				tx.DeleteWorkload("default", p)
				delete(rows, "default/"+p)
			case "gone":
				tx.ReleaseWorkload("default", p)
				if w, ok := rows["default/"+p]; ok {
					w.Gone = true
					rows["default/"+p] = w
				}
			case "upsert":
				o := origin.Draw(t, "origin")
				tx.UpsertEndpoint(o, owner(o, p), endpoint(address.Draw(t, "address"), 300, p))
			case "delete":
				o := origin.Draw(t, "origin")
				tx.DeleteEndpoint(o, owner(o, p), prefix(address.Draw(t, "address")))
			case "drain":
				tx.DeleteOrigin(origin.Draw(t, "origin"), wire.Endpoints)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"changes": func(t *rapid.T) {
				f.do(func(tx *Txn) {
					for range rapid.IntRange(1, 6).Draw(t, "changes") {
						change(t, tx, rows)
					}
				})
			},
			"aborted": func(t *rapid.T) {
				tx := f.w.Begin()
				defer tx.Abort() // a draw may end it
				for range rapid.IntRange(1, 6).Draw(t, "changes") {
					change(t, tx, map[string]Workload{})
				}
			},
			"": func(t *rapid.T) {
				gone := 0
				for name, w := range rows {
					if !w.Gone {
						continue
					}
					if len(f.ofPod("default", w.Pod)) == 0 {
						delete(rows, name) // and it doesn't come back
						continue
					}
					gone++
				}
				require.Equal(t, rows, f.lastWords())
				require.Equal(t, gone, f.w.gone)
			},
		})
	})
}

// BenchmarkReleaseWorkload is an endpoint that goes, among 100,000: where no deleted pod
// has any left, where others have, and where its own pod's last word goes with it.
func BenchmarkReleaseWorkload(b *testing.B) {
	for _, gone := range []string{"none", "others", "own"} {
		b.Run(fmt.Sprintf("gone=%s", gone), func(b *testing.B) {
			t := newBenchTable(b)
			t.fill(100_000)
			ep, other := benchEndpoint(200_000), benchEndpoint(200_001)
			said := func(ep wire.Endpoint) Workload {
				return Workload{Namespace: ep.Namespace, Pod: ep.Pod, Workload: filter.Workload{Sync: true, SyncFrom: filter.AsLabel}}
			}
			if gone == "others" {
				t.do(func(tx *Txn) {
					tx.UpsertEndpoint(t.local, Owner{}, other)
					tx.UpsertWorkload(said(other))
					tx.ReleaseWorkload(other.Namespace, other.Pod)
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				tx := t.w.Begin()
				tx.UpsertEndpoint(t.local, Owner{}, ep)
				if gone == "own" {
					tx.UpsertWorkload(said(ep))
					tx.ReleaseWorkload(ep.Namespace, ep.Pod)
				}
				tx.DeleteEndpoint(t.local, Owner{}, ep.Prefix)
				tx.Commit()
			}
		})
	}
}
