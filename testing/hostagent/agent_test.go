// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/identity"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// TestAgent starts upstream's agent as it is: what Kubernetes has reaches its
// ipcache, and does so again after a restart in the same process.
func TestAgent(t *testing.T) {
	server := kubeapi.Start(t)
	hostagent.AddNode(t, server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	agent := hostagent.New(t, hostagent.Config{
		Server: server, Node: "one",
		Flags: mesh.Flags{"cluster-name": "west", "cluster-id": "2"},
	})
	agent.Start()

	require.NoError(t, server.CreateNamespace(t.Context(), "meadow"))
	labels := map[string]string{"k8s:io.kubernetes.pod.namespace": "meadow", "k8s:app": "bee"}
	require.NoError(t, server.CreateIdentity(t.Context(), "131500", labels))
	pod := &wire.Endpoint{
		Prefix: netip.MustParsePrefix("10.244.2.7/32"), HostIP: netip.MustParseAddr("10.0.0.2"),
		Identity: 131500, Namespace: "meadow", Pod: "bee-0",
	}
	require.NoError(t, server.CreateEndpoint(t.Context(), pod, labels))

	has := func(agent *hostagent.Agent) func() bool {
		return func() bool {
			id, ok := agent.IPCache.LookupByIP("10.244.2.7")
			return ok && id.ID == identity.NumericIdentity(131500) &&
				agent.Identities.LookupIdentityByID(t.Context(), 131500) != nil
		}
	}
	require.Eventually(t, has(agent), time.Minute, 10*time.Millisecond)
	agent.Restart()
	require.Eventually(t, has(agent), time.Minute, 10*time.Millisecond)

	require.NoError(t, server.DeleteEndpoint(t.Context(), pod))
	require.Eventually(t, func() bool {
		_, ok := agent.IPCache.LookupByIP("10.244.2.7")
		return !ok
	}, time.Minute, 10*time.Millisecond)
}
