// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"net/netip"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	patience = time.Minute
	tick     = 5 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mapped is what the map says of a pod that create made.
const mapped = "identity=65546 encryptkey=0 tunnelendpoint=172.18.0.2 flags=hastunnel"

// TestMesh has a pod of one cluster arrive in another, and stay there while each
// part in between is started again.
func TestMesh(t *testing.T) {
	objects := mesh.NewObjects(t)
	north, west := mesh.NewCluster(t, "north", 1), mesh.NewCluster(t, "west", 2)
	remotes := mesh.NewDirectory(t).Add("north", north.Etcd)
	exporter := north.NewExporter(t, objects)
	cache := west.NewKVStoreMesh(t, remotes, mesh.Flags{"drain-grace-period": "0s"})
	agent := west.NewAgent(t, mesh.NewDirectory(t).Add("north", west.Etcd))
	exporter.Start()
	cache.Start()
	agent.Start()

	create(t, objects, "web-0", "10.1.0.10")
	arrives(t, agent, "10.1.0.10")
	follower := agent.Follow(t)
	revisions := agent.Revisions()
	require.Contains(t, revisions, "endpoints 10.1.0.10/32")
	untouched := func() {
		t.Helper()
		require.Empty(t, follower.Gone())
		now := agent.Revisions()
		for row, revision := range revisions {
			require.Equal(t, revision, now[row], row)
		}
	}

	exporter.Restart()
	cache.Restart()
	create(t, objects, "web-1", "10.1.0.11")
	arrives(t, agent, "10.1.0.11")
	untouched()

	remotes.Remove("north")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		cached, err := west.Etcd.List(t.Context(), wire.CacheRoot)
		require.NoError(c, err)
		require.Empty(c, cached)
		require.Equal(c, []string{
			"endpoints 10.1.0.10/32", "endpoints 10.1.0.11/32", "identities 65546",
		}, follower.Gone())
	}, patience, tick)

	remotes.Add("north", north.Etcd)
	arrives(t, agent, "10.1.0.10")
	follower, revisions = agent.Follow(t), agent.Revisions()
	for _, etcd := range []*mesh.Etcd{north.Etcd, west.Etcd} {
		etcd.Stop()
		etcd.Lose()
		etcd.Start()
	}
	create(t, objects, "web-2", "10.1.0.12")
	arrives(t, agent, "10.1.0.12")
	untouched()

	agent.Restart()
	arrives(t, agent, "10.1.0.12")
}

// create adds a pod of the identity 65546, with what that needs.
func create(t *testing.T, objects *mesh.Objects, name, address string) {
	t.Helper()
	ctx := t.Context()
	const namespace = "shop"
	if _, err := objects.Slim().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		_, err := objects.Slim().CoreV1().Namespaces().Create(ctx,
			&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
		require.NoError(t, err)
		_, err = objects.CiliumV2().CiliumIdentities().Create(ctx, &ciliumv2.CiliumIdentity{
			ObjectMeta: metav1.ObjectMeta{Name: "65546"},
			SecurityLabels: map[string]string{
				"k8s:io.cilium.k8s.policy.cluster":        "north",
				"k8s:io.kubernetes.pod.namespace":         namespace,
				"k8s:io.cilium.k8s.policy.serviceaccount": "default",
			},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	_, err := objects.CiliumV2().CiliumEndpoints(namespace).Create(ctx, &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: 65546},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: address}},
				NodeIP:     "172.18.0.2",
			},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// arrives waits until the agent's map has an address.
func arrives(t *testing.T, agent *mesh.Agent, address string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		entry, found := agent.Datapath.Lookup(netip.MustParseAddr(address))
		require.True(c, found)
		require.Equal(c, mapped, entry.Value.String())
	}, patience, tick)
}
