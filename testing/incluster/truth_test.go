// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"strconv"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// requireTruth waits until the agent's tables hold what Kubernetes does, to the row:
// by the API server's own lists, and by the tables of an agent that reads those.
// Nothing may change meanwhile.
func (s *scene) requireTruth() {
	s.Helper()
	require.EventuallyWithT(s, func(c *assert.CollectT) {
		s.compareWithLists(c)
		s.compareWithReference(c)
	}, patience, tick)
}

func (s *scene) compareWithLists(c *assert.CollectT) {
	ctx, txn := s.Context(), s.agent.DB.ReadTxn()
	endpoints, err := s.Cilium.CiliumV2().CiliumEndpoints("").List(ctx, metav1.ListOptions{})
	require.NoError(c, err)
	want := map[string]uint32{}
	for _, e := range endpoints.Items {
		want[e.Status.Networking.Addressing[0].IPV4] = uint32(e.Status.Identity.ID)
	}
	got := map[string]uint32{}
	for row := range s.agent.Endpoints.All(txn) {
		got[row.Prefix().Addr().String()] = row.Identity()
	}
	require.Equal(c, want, got)

	identities, err := s.Cilium.CiliumV2().CiliumIdentities().List(ctx, metav1.ListOptions{})
	require.NoError(c, err)
	require.Equal(c, len(identities.Items), s.agent.Identities.NumObjects(txn))
	for _, i := range identities.Items {
		id, err := strconv.ParseUint(i.Name, 10, 32)
		require.NoError(c, err)
		row, _, found := s.agent.Identities.Get(txn, state.IdentityByID(uint32(id)))
		require.True(c, found, i.Name)
		require.Equal(c, wire.EncodeIdentityLabels(i.SecurityLabels), row.Labels)
	}
	nodes, err := s.Cilium.CiliumV2().CiliumNodes().List(ctx, metav1.ListOptions{})
	require.NoError(c, err)
	require.Equal(c, len(nodes.Items), s.agent.Nodes.NumObjects(txn))
	services, err := s.Kubernetes.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	require.NoError(c, err)
	require.Equal(c, len(services.Items), s.agent.Services.NumObjects(txn))
}

func (s *scene) compareWithReference(c *assert.CollectT) {
	require.Equal(c, content(s.reference), content(s.agent))
}

// content is all that an agent's tables hold, but for the owners of claims, which
// an etcd doesn't tell.
func content(agent *mesh.Agent) map[string]any {
	txn, rows := agent.DB.ReadTxn(), map[string]any{}
	for row := range agent.Endpoints.All(txn) {
		rows["endpoint "+row.Prefix().String()] = []any{row.Endpoint(), *row.Origin()}
	}
	collect(rows, txn, agent.Identities, func(row *state.Identity) (string, any) {
		return "identity " + wire.IdentityKey(row.ID), []any{row.Identity, *row.Origin}
	})
	collect(rows, txn, agent.Nodes, func(row *state.Node) (string, any) {
		return "node " + row.Cluster + "/" + row.Name, []any{row.Node, *row.Origin}
	})
	collect(rows, txn, agent.Services, func(row *state.Service) (string, any) {
		return "service " + row.String(), []any{*row.Service, *row.Origin}
	})
	collect(rows, txn, agent.ServiceExports, func(row *state.ServiceExport) (string, any) {
		return "export " + row.Namespace + "/" + row.Name, *row.ServiceExport
	})
	collect(rows, txn, agent.Namespaces, func(row *state.Namespace) (string, any) { return "namespace " + row.Name, *row })
	return rows
}

func collect[T any](rows map[string]any, txn statedb.ReadTxn, table statedb.Table[T], split func(T) (string, any)) {
	for row := range table.All(txn) {
		key, value := split(row)
		rows[key] = value
	}
}
