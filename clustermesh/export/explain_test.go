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

// explained is a rig's explainer in opt-in mode, in a region.
func explained(r *rig) *explainer {
	return &explainer{
		cluster: localName, namespaces: filter.DefaultNamespacePolicy, region: "eu",
		workloads: filter.WorkloadPolicy{Mode: filter.SyncOptIn}, tables: r.writer.Tables(),
	}
}

func workload(namespace, pod string, annotations map[string]string) state.Workload {
	return state.Workload{Namespace: namespace, Pod: pod, Workload: filter.ParseWorkload(nil, annotations)}
}

// TestExplain walks through the life of a pod, and reads what an operator would.
func TestExplain(t *testing.T) {
	r := newRig(t, Options{})
	x := explained(r)
	print := func() string {
		answer := x.explain(r.writer.ReadTxn(), "don", "web")
		answer.Written = true
		answer.EtcdError = "not asked"
		var out strings.Builder
		require.NoError(t, answer.Print(&out))
		return out.String()
	}
	text := print()
	require.Contains(t, text, "don doesn't exist")
	require.Contains(t, text, "not read everything yet (namespaces, workloads, identities, endpoints)")
	require.Contains(t, text, "no endpoint of such a pod is known, and no pod of that name says anything")

	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertWorkload(workload("don", "web", map[string]string{filter.SyncKey: "yes"}))
	})
	text = print()
	require.Contains(t, text, `counts as absent: annotation clustermesh.cilium.io/sync="yes"`)
	require.Contains(t, text, "there is a pod, and no endpoint of it yet")

	r.write(func(tx *state.Txn) {
		tx.UpsertEndpoint(r.local, state.Owner{Object: "endpoint/db"}, endpoint("10.0.0.1", "don", "db"))
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "web"))
		tx.UpsertEndpoint(r.local, owner, endpoint("fd00::1", "don", "web"))
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("fd00::1", "don", "theirs"))
		// Of another cluster, so that it isn't this pod.
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("10.0.0.9", "don", "web"))
	})
	require.Equal(t, strings.TrimLeft(`
ours/don/web
  namespace        don is global: no annotation, and --clustermesh-default-global-namespace=true
  mode             --clustermesh-sync-mode=opt-in: pods of global namespaces are pushed if they say so
  pod              says nothing valid about clustermesh.cilium.io/sync
  pod              counts as absent: annotation clustermesh.cilium.io/sync="yes": must be true or false
  scope            global: the pod says nothing else; this cluster is in region eu
  =>               on demand: in etcd, where nobody watches it
  10.0.0.1         held by don/db: this pod's claim waits until that one is gone
  fd00::1          on-demand cilium/state/ondemand/ip/v1/default/fd00::1; also claimed by theirs/don/theirs
  identity 200000  isn't known yet, so that it has no key
  note             what etcd has is unknown: not asked
`, "\n"), print())

	r.write(func(tx *state.Txn) {
		tx.UpsertIdentity(r.local, identity(200000, "don"))
		tx.UpsertWorkload(workload("don", "web", map[string]string{filter.SyncKey: "true", filter.ScopeKey: "regional"}))
		tx.DeleteEndpoint(r.local, state.Owner{Object: "endpoint/db"}, endpoint("10.0.0.1", "", "").Prefix)
	})
	require.Equal(t, strings.TrimLeft(`
ours/don/web
  namespace        don is global: no annotation, and --clustermesh-default-global-namespace=true
  mode             --clustermesh-sync-mode=opt-in: pods of global namespaces are pushed if they say so
  pod              annotation clustermesh.cilium.io/sync=true
  scope            regional: annotation clustermesh.cilium.io/sync-scope; this cluster is in region eu
  =>               pushed: other clusters watch it
  10.0.0.1         pushed cilium/state/ip/v1/default/10.0.0.1
  fd00::1          pushed cilium/state/ip/v1/default/fd00::1; also claimed by theirs/don/theirs
  identity 200000  pushed cilium/state/identities/v1/id/200000: 2 pushed endpoints have it
  note             what etcd has is unknown: not asked
`, "\n"), print())

	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	text = print()
	require.Contains(t, text, `don isn't global: annotation clustermesh.cilium.io/global="false"`)
	require.Contains(t, text, "kept: not in etcd")
	require.Contains(t, text, "gets no pod out of a namespace")
}

// TestExplainShowsWhereThingsAre: what moves is in two places for a while.
func TestExplainShowsWhereThingsAre(t *testing.T) {
	r := newRig(t, Options{})
	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "web"))
		tx.UpsertIdentity(r.local, identity(200000, "don"))
	})
	answer := explained(r).explain(r.writer.ReadTxn(), "don", "web")
	require.Equal(t, []string{
		"cilium/state/identities/v1/id/200000", "cilium/state/ip/v1/default/10.0.0.1",
		"cilium/state/ondemand/identities/v1/id/200000", "cilium/state/ondemand/ip/v1/default/10.0.0.1",
	}, answer.keys())
	answer.found(map[string]bool{
		"cilium/state/ip/v1/default/10.0.0.1":          true,
		"cilium/state/ondemand/ip/v1/default/10.0.0.1": true,
		"cilium/state/identities/v1/id/200000":         true,
	})
	ep := answer.Endpoints[0]
	require.Equal(t, "on-demand cilium/state/ondemand/ip/v1/default/10.0.0.1 (still in etcd: cilium/state/ip/v1/default/10.0.0.1)",
		ep.Endpoint.text(true))
	require.Equal(t, "on-demand cilium/state/ondemand/identities/v1/id/200000 (not in etcd)"+
		" (still in etcd: cilium/state/identities/v1/id/200000)", ep.Identity.text(true))
}

// TestExplainSaysWhatCannotBeEncoded, with the pod's earlier value in etcd or without.
func TestExplainSaysWhatCannotBeEncoded(t *testing.T) {
	r := newRigOf(t, Options{}, filter.SyncOptIn, "eu")
	r.begin()
	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertWorkload(optsIn("don", "web"))
		tx.UpsertIdentity(r.local, identity(200000, "don"))
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "web"))
		large := endpoint("10.0.0.2", "don", "web")
		large.Metadata = strings.Repeat("x", wire.MaxValueBytes)
		tx.UpsertEndpoint(r.local, owner, large)
	})
	r.round()
	answer := explained(r).explain(r.writer.ReadTxn(), "don", "web")
	answer.refused(r.export.refusal)
	answer.found(map[string]bool{"cilium/state/ip/v1/default/10.0.0.1": true})
	require.Equal(t, "pushed cilium/state/ip/v1/default/10.0.0.1", answer.Endpoints[0].Endpoint.text(true))
	require.Contains(t, answer.Endpoints[1].Endpoint.text(true),
		"pushed cilium/state/ip/v1/default/10.0.0.2 (not in etcd); it can't be encoded: ")
	require.Contains(t, answer.Endpoints[1].Endpoint.text(true), "are more than 1048576")

	r.write(func(tx *state.Txn) { tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.2", "don", "web")) })
	r.round()
	require.NoError(t, r.export.refusal(wire.Endpoints, "10.0.0.2"))
}

func TestFilterStatus(t *testing.T) {
	r := newRig(t, Options{})
	x := explained(r)
	x.region = ""
	status := x.status(r.writer.ReadTxn(), 2)
	require.False(t, status.Remarkable())
	r.write(func(tx *state.Txn) {
		tx.UpsertExport(state.Export{Resource: wire.Endpoints, Pushed: 3, OnDemand: 2, NotGlobal: 1, Synced: true})
		tx.UpsertExport(state.Export{Resource: wire.Nodes, Pushed: 2, Synced: true})
		for _, pod := range []string{"a", "b", "c"} {
			tx.UpsertWorkload(workload("don", pod, map[string]string{filter.SyncKey: "1"}))
		}
		tx.UpsertWorkload(workload("don", "fine", map[string]string{filter.SyncKey: "true"}))
	})
	status = x.status(r.writer.ReadTxn(), 2)
	require.True(t, status.Remarkable())
	print := func(all bool) string {
		var out strings.Builder
		require.NoError(t, PrintFilterStatus(&out, []FilterStatus{status}, all))
		return out.String()
	}
	require.Equal(t, strings.TrimLeft(`
CLUSTER  SYNC MODE  REGION  RESOURCE   PUSHED  ON DEMAND  NOT GLOBAL  REFUSED
ours     opt-in     -       nodes      2       0          0           0
ours     opt-in     -       endpoints  3       2          1           0

Malformed settings of pods in ours, which count as absent:
  don/a: annotation clustermesh.cilium.io/sync="1": must be true or false
  don/b: annotation clustermesh.cilium.io/sync="1": must be true or false
  and 1 more
`, "\n"), print(true))
	require.NotContains(t, print(false), "nodes", "of which nothing is left out")
	require.Contains(t, print(false), "endpoints")
}
