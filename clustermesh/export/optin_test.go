// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// says is what a pod says, as its annotations.
func says(namespace, pod string, annotations map[string]string) state.Workload {
	return state.Workload{Namespace: namespace, Pod: pod, Workload: filter.ParseWorkload(nil, annotations)}
}

func optsIn(namespace, pod string) state.Workload {
	return says(namespace, pod, map[string]string{filter.SyncKey: "true"})
}

func TestPodsOptIn(t *testing.T) {
	r := newRigOf(t, Options{}, filter.SyncOptIn, "")
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		r.namespace(tx, "home", false)
		in, out := endpoint("10.0.0.1", "don", "in"), endpoint("10.0.0.2", "don", "out")
		in.Identity, out.Identity = 200001, 200002
		tx.UpsertEndpoint(r.local, owner, in)
		in.Prefix = endpoint("fd00::1", "don", "in").Prefix
		tx.UpsertEndpoint(r.local, owner, in)
		tx.UpsertEndpoint(r.local, owner, out)
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.3", "home", "in"))
		for _, id := range []uint32{200001, 200002, 200003} {
			tx.UpsertIdentity(r.local, identity(id, "don"))
		}
		tx.UpsertIdentity(r.local, identity(200004, "home"))
		tx.UpsertService(r.local, service("don", "web", true))
		tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
		tx.UpsertWorkload(optsIn("don", "in"))
		tx.UpsertWorkload(optsIn("home", "in"))
	})
	pushed, lookups := r.scopes[wire.Endpoints], r.lookups[wire.Endpoints]
	identities, ondemand := r.scopes[wire.Identities], r.lookups[wire.Identities]
	for _, last := range []wire.Resource{wire.Endpoints, wire.Identities, state.Workloads} {
		r.round()
		require.Zero(t, pushed.Len()+lookups.Len()+identities.Len()+ondemand.Len(), "until %s are known", last)
		if last == wire.Endpoints {
			r.initialize(state.Namespaces, wire.Nodes, wire.Services, wire.ServiceExports)
		}
		r.initialize(last)
	}
	at := func(want ...string) {
		t.Helper()
		r.round()
		for i, s := range []*recorder{pushed, lookups, identities, ondemand} {
			require.Equal(t, want[i], s.list(), i)
		}
	}
	at("10.0.0.1 fd00::1", "10.0.0.2", "200001", "200002 200003")
	for resource, s := range r.scopes {
		require.Equal(t, 1, s.completed(), resource)
	}
	require.Equal(t, 1, lookups.completed())
	require.Equal(t, 1, ondemand.completed())

	// A pod opts in, another one no longer does, with both its addresses.
	r.write(func(tx *state.Txn) {
		tx.UpsertWorkload(optsIn("don", "out"))
		tx.UpsertWorkload(says("don", "in", map[string]string{filter.SyncKey: "maybe"}))
	})
	at("10.0.0.2", "10.0.0.1 fd00::1", "200002", "200001 200003")

	// It gets another identity.
	r.write(func(tx *state.Txn) {
		out := endpoint("10.0.0.2", "don", "out")
		out.Identity = 200003
		tx.UpsertEndpoint(r.local, owner, out)
	})
	at("10.0.0.2", "10.0.0.1 fd00::1", "200003", "200001 200002")

	// Its namespace stays at home, and with it what the pod says.
	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	at("", "", "", "")
	notGlobal, _ := r.export.followers[1].counts()
	require.Equal(t, 4, notGlobal)
	r.write(func(tx *state.Txn) { r.namespace(tx, "don", true) })
	at("10.0.0.2", "10.0.0.1 fd00::1", "200003", "200001 200002")
	require.Equal(t, 1, r.scopes[wire.Services].Len())
	require.Equal(t, 1, r.scopes[wire.ServiceExports].Len())

	// The pod says nothing, and opts in again.
	r.write(func(tx *state.Txn) { tx.DeleteWorkload("don", "out") })
	at("", "10.0.0.1 10.0.0.2 fd00::1", "", "200001 200002 200003")
	r.write(func(tx *state.Txn) { tx.UpsertWorkload(optsIn("don", "out")) })
	at("10.0.0.2", "10.0.0.1 fd00::1", "200003", "200001 200002")

	// The pod goes, and then its endpoint, which stays where it is until then; or the
	// identity first.
	r.write(func(tx *state.Txn) { tx.ReleaseWorkload("don", "out"); tx.DeleteIdentity(r.local, 200002) })
	at("10.0.0.2", "10.0.0.1 fd00::1", "200003", "200001")
	r.write(func(tx *state.Txn) { tx.DeleteEndpoint(r.local, owner, endpoint("10.0.0.2", "", "").Prefix) })
	at("", "10.0.0.1 fd00::1", "", "200001 200003")
	require.Empty(t, r.export.uses.of)
	require.Empty(t, r.export.uses.count)
	require.Empty(t, r.export.uses.departing)
}

// TestLookupsAreSmall: what nobody may look up isn't exported for it, and named.
func TestLookupsAreSmall(t *testing.T) {
	r := newRigOf(t, Options{}, filter.SyncOptIn, "")
	r.begin()
	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		for n, addr := range []string{"10.0.0.1", "10.0.0.2"} {
			ep := endpoint(addr, "don", "out")
			ep.Metadata = strings.Repeat("x", wire.MaxLookupBytes/2+n*wire.MaxLookupBytes)
			tx.UpsertEndpoint(r.local, owner, ep)
		}
	})
	r.round()
	require.Equal(t, "10.0.0.1", r.lookups[wire.Endpoints].list())
	require.ErrorContains(t, r.export.refusal(wire.Endpoints, "10.0.0.2"), "too-large")
	require.NoError(t, r.export.refusal(wire.Endpoints, "10.0.0.1"))

	r.write(func(tx *state.Txn) { tx.UpsertWorkload(optsIn("don", "out")) })
	r.round()
	require.Equal(t, "10.0.0.1 10.0.0.2", r.scopes[wire.Endpoints].list(), "what is pushed may be larger")
	require.NoError(t, r.export.refusal(wire.Endpoints, "10.0.0.2"))
}

// TestScopeOfPods has pods asked in the mode in which all are pushed, for the scope.
func TestScopeOfPods(t *testing.T) {
	for region, want := range map[string]string{"": "", "eu": `"SyncScope":"regional"`} {
		r := newRigOf(t, Options{}, filter.SyncAll, region)
		r.begin()
		r.initializeAll()
		r.write(func(tx *state.Txn) {
			r.namespace(tx, "don", true)
			tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
		})
		r.round()
		require.NotContains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), "SyncScope")
		r.write(func(tx *state.Txn) {
			tx.UpsertWorkload(says("don", "x", map[string]string{filter.SyncKey: "false", filter.ScopeKey: "regional"}))
		})
		r.round()
		require.Contains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), want)
		r.write(func(tx *state.Txn) { tx.ReleaseWorkload("don", "x") })
		r.round()
		require.Contains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), want, "the pod is gone, and its endpoint is yet to go")
		r.write(func(tx *state.Txn) { tx.DeleteWorkload("don", "x") })
		r.round()
		require.NotContains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), "SyncScope", "a pod of its name says nothing")
		require.NotNil(t, r.lookups[wire.Endpoints], "what an earlier process in another mode left goes")
		require.Equal(t, 1, r.lookups[wire.Endpoints].completed())
		require.Empty(t, r.lookups[wire.Endpoints].batches)
	}
}

// TestAddressGoesToAnotherNamespace has the address of a pushed endpoint, whose
// namespace ceases to be global, become that of one that is looked up: as long as
// etcd has the first one its identity stays.
func TestAddressGoesToAnotherNamespace(t *testing.T) {
	w := newUnorderedRig(t, filter.SyncOptIn)
	w.write(func(tx *state.Txn) {
		w.namespace(tx, "don", true)
		w.namespace(tx, "duero", true)
		tx.UpsertEndpoint(w.local, state.Owner{Object: "endpoint/don"}, endpoint("10.0.0.1", "don", "x"))
		tx.UpsertEndpoint(w.local, state.Owner{Object: "endpoint/duero"}, endpoint("10.0.0.1", "duero", "y"))
		tx.UpsertIdentity(w.local, identity(200000, "don"))
		tx.UpsertWorkload(optsIn("don", "x"))
	})
	w.initializeAll()
	w.settle()
	endpoints, lookups := w.unordered[placeName{wire.Endpoints, false}], w.unordered[placeName{wire.Endpoints, true}]
	identities := w.unordered[placeName{wire.Identities, false}]
	require.Contains(t, identities.committed, "200000")
	require.Contains(t, endpoints.committed, "10.0.0.1")

	w.write(func(tx *state.Txn) {
		w.namespace(tx, "don", false)
		tx.DeleteEndpoint(w.local, state.Owner{Object: "endpoint/don"}, endpoint("10.0.0.1", "", "").Prefix)
	})
	w.round()
	require.NotContains(t, identities.pending, "200000")
	require.NotContains(t, endpoints.pending, "10.0.0.1")
	lookups.commit("10.0.0.1")
	w.round()
	require.NotContains(t, identities.pending, "200000")
	endpoints.commit("10.0.0.1")
	w.round()
	require.Contains(t, identities.pending, "200000")
}
