// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ofPod are the addresses that LocalEndpointsByPod finds, ofNamespace those of
// LocalEndpointsByNamespace.
func (f *fixture) ofPod(namespace, pod string) []string {
	return addresses(statedb.Collect(f.tables.Endpoints.List(f.db.ReadTxn(), LocalEndpointsByPod(namespace, pod))))
}

func (f *fixture) ofNamespace(namespace string) []string {
	return addresses(statedb.Collect(f.tables.Endpoints.Prefix(f.db.ReadTxn(), LocalEndpointsByNamespace(namespace))))
}

func addresses(rows []*Endpoint) []string {
	found := []string{}
	for _, row := range rows {
		found = append(found, row.Prefix().Addr().String())
	}
	slices.Sort(found)
	return found
}

// TestLocalEndpointsByPod: an address is found under the pod that has it now.
func TestLocalEndpointsByPod(t *testing.T) {
	f := newFixture(t)
	a, b := Owner{Object: "endpoint/default/a"}, Owner{Object: "endpoint/default/ab"}
	f.upsert(f.local, a, endpoint(ip, 1, "a"))
	f.upsert(f.local, a, endpoint("fd00::1", 1, "a"))
	f.upsert(f.red, Owner{}, endpoint("10.0.0.9", 2, "a"))
	require.Equal(t, []string{ip, "fd00::1"}, f.ofPod("default", "a"), "both families, and no other cluster's")
	require.Empty(t, f.ofPod("default", ""), "a pod's name isn't a prefix")
	require.Empty(t, f.ofPod("defaul", "t/a"))

	// Another pod waits for the address, and gets it.
	f.upsert(f.local, b, endpoint(ip, 1, "ab"))
	require.Equal(t, []string{ip, "fd00::1"}, f.ofPod("default", "a"))
	require.Empty(t, f.ofPod("default", "ab"))
	f.delete(f.local, a, ip)
	require.Equal(t, []string{"fd00::1"}, f.ofPod("default", "a"))
	require.Equal(t, []string{ip}, f.ofPod("default", "ab"))

	// What is left on it is another cluster's.
	f.upsert(f.red, Owner{}, endpoint(ip, 2, "ab"))
	require.Equal(t, []string{ip}, f.ofPod("default", "ab"))
	f.delete(f.local, b, ip)
	require.NotNil(t, f.row(ip))
	require.Empty(t, f.ofPod("default", "ab"))
	require.Equal(t, []string{"fd00::1"}, f.ofNamespace("default"))
}

// TestLocalEndpointsAreAllFound: whatever claims come and go, the index finds what a
// walk over the table does.
func TestLocalEndpointsAreAllFound(t *testing.T) {
	namespaces, pods := []string{"a", "a-b", "ab"}, []string{"x", "x-y", "y"}
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t)
		address := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "fd00::1"})
		namespace, pod := rapid.SampledFrom(namespaces), rapid.SampledFrom(pods)
		origin := rapid.SampledFrom([]*Origin{f.local, f.local, f.red})
		owner := func(o *Origin, namespace, pod string) Owner {
			if o != f.local {
				return Owner{}
			}
			return Owner{Object: "endpoint/" + namespace + "/" + pod}
		}
		t.Repeat(map[string]func(*rapid.T){
			"upsert": func(t *rapid.T) {
				o, ns, p := origin.Draw(t, "origin"), namespace.Draw(t, "namespace"), pod.Draw(t, "pod")
				ep := endpoint(address.Draw(t, "address"), 1, p)
				ep.Namespace = ns
				f.upsert(o, owner(o, ns, p), ep)
			},
			"delete": func(t *rapid.T) {
				o := origin.Draw(t, "origin")
				f.delete(o, owner(o, namespace.Draw(t, "namespace"), pod.Draw(t, "pod")), address.Draw(t, "address"))
			},
			"": func(t *rapid.T) {
				byPod, byNamespace := map[string][]*Endpoint{}, map[string][]*Endpoint{}
				for row := range f.tables.Endpoints.All(f.db.ReadTxn()) {
					if row.Origin() == f.local {
						ep := row.Claim().Endpoint
						byPod[podKey(ep.Namespace, ep.Pod)] = append(byPod[podKey(ep.Namespace, ep.Pod)], row)
						byNamespace[ep.Namespace] = append(byNamespace[ep.Namespace], row)
					}
				}
				for _, ns := range namespaces {
					require.Equal(t, addresses(byNamespace[ns]), f.ofNamespace(ns))
					for _, p := range pods {
						require.Equal(t, addresses(byPod[podKey(ns, p)]), f.ofPod(ns, p))
					}
				}
			},
		})
	})
}

// TestWorkloads: one row for each pod, which goes with what the pod says.
func TestWorkloads(t *testing.T) {
	f := newFixture(t)
	says := func(namespace, pod string, w filter.Workload) {
		f.do(func(tx *Txn) { tx.UpsertWorkload(Workload{Namespace: namespace, Pod: pod, Workload: w}) })
	}
	row := func(namespace, pod string) *Workload {
		row, _, _ := f.tables.Workloads.Get(f.db.ReadTxn(), WorkloadByPod(namespace, pod))
		return row
	}
	synced := filter.Workload{Sync: true, SyncFrom: filter.AsAnnotation}
	says("a", "b", synced)
	says("a", "bc", filter.Workload{Scope: wire.ScopeRegional, ScopeFrom: filter.AsLabel, Problem: "p"})
	require.Equal(t, &Workload{Namespace: "a", Pod: "b", Workload: synced}, row("a", "b"))
	require.Equal(t, []string{"a", "b", "true", "", "", ""}, row("a", "b").TableRow())
	require.Equal(t, []string{"a", "bc", "", "regional", "", "p"}, row("a", "bc").TableRow())
	require.Nil(t, row("a", ""))

	// Where it says it is a change like any other: an annotation comes before a label.
	before := f.tables.Workloads.Revision(f.db.ReadTxn())
	says("a", "b", synced)
	require.Equal(t, before, f.tables.Workloads.Revision(f.db.ReadTxn()))
	says("a", "b", filter.Workload{Sync: true, SyncFrom: filter.AsLabel})
	require.Equal(t, filter.AsLabel, row("a", "b").SyncFrom)

	f.do(func(tx *Txn) {
		tx.DeleteWorkload("a", "b")
		tx.DeleteWorkload("a", "b")
		tx.DeleteWorkload("b", "a")
	})
	require.Nil(t, row("a", "b"))
	require.NotNil(t, row("a", "bc"))
}

// TestExports: one row for each resource, each upsert being all of it.
func TestExports(t *testing.T) {
	f := newFixture(t)
	endpoints := Export{Resource: wire.Endpoints, Mode: filter.SyncOptIn, Region: "eu", Pushed: 3, OnDemand: 5, NotGlobal: 7, Refused: 1}
	f.do(func(tx *Txn) {
		tx.UpsertExport(endpoints)
		tx.UpsertExport(Export{Resource: wire.Nodes, Mode: filter.SyncOptIn, Pushed: 2, Synced: true})
	})
	endpoints.Pushed, endpoints.OnDemand, endpoints.Synced = 4, 4, true
	f.do(func(tx *Txn) { tx.UpsertExport(endpoints) })
	row, _, found := f.tables.Exports.Get(f.db.ReadTxn(), ExportByResource(wire.Endpoints))
	require.True(t, found)
	require.Equal(t, &endpoints, row)
	require.Equal(t, []string{string(wire.Endpoints), "opt-in", "eu", "4", "4", "7", "1", "true"}, row.TableRow())
	require.Len(t, row.TableHeader(), len(row.TableRow()))
	require.Equal(t, 2, f.tables.Exports.NumObjects(f.db.ReadTxn()))
	before := f.tables.Exports.Revision(f.db.ReadTxn())
	f.do(func(tx *Txn) { tx.UpsertExport(endpoints) })
	require.Equal(t, before, f.tables.Exports.Revision(f.db.ReadTxn()))
}

// TestWorkloadsInitialized: a table that nobody fills counts as complete.
func TestWorkloadsInitialized(t *testing.T) {
	f := newFixture(t)
	initialized := func() bool {
		done, _ := f.tables.Workloads.Initialized(f.db.ReadTxn())
		return done
	}
	require.True(t, initialized())
	done := f.w.RegisterInitializer("pods", Workloads)
	require.False(t, initialized())
	f.do(done)
	require.True(t, initialized())
}
