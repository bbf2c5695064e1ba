// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package operator_test

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
	"github.com/waggle-mesh/waggle/testing/skip"
)

const (
	// patience is how long a condition may take; it only matters for failures.
	patience = 2 * time.Minute
	tick     = 100 * time.Millisecond
)

// TestOperator: two replicas of a real cilium-operator at a real API server. Each fills
// its own cache, with everything; the one that leads fills the mesh's etcd, with what
// is to be seen there, until it dies and the other one does.
func TestOperator(t *testing.T) {
	if os.Geteuid() != 0 {
		skip.Lacking(t, errors.New("the operator needs a mount namespace, which takes root: its paths are absolute"))
	}
	server, forMesh := kubeapi.Start(t), mesh.StartEtcd(t)
	fill(t, server)
	flags := []string{
		"--k8s-kubeconfig-path=" + server.Kubeconfig, "--cluster-name=meadow", "--cluster-id=1",
		// Its own work: as with agents that have their state in Kubernetes. The cluster
		// pools and the clouds are registered where upstream's build tags say so.
		"--identity-allocation-mode=crd", "--ipam=kubernetes",
		"--enable-incluster-cache",
		"--enable-clustermesh-export", "--clustermesh-export-kvstore-opt=etcd.address=" + forMesh.URL(),
	}
	local := []string{
		".heartbeat",
		"incluster-cache/meadow",
		"state/identities/v1/id/65536",
		"state/ip/v1/default/10.1.0.1", "state/ip/v1/default/10.1.0.2",
		"state/nodes/v1/meadow/node-1",
		"state/services/v1/meadow/default/kubernetes",
		"state/services/v1/meadow/home/web", "state/services/v1/meadow/shop/web",
		"synced/meadow/cilium/state/identities/v1", "synced/meadow/cilium/state/ip/v1",
		"synced/meadow/cilium/state/nodes/v1", "synced/meadow/cilium/state/services/v1",
	}
	remote := []string{
		".heartbeat",
		"cluster-config/meadow",
		"state/identities/v1/id/65536",
		"state/ip/v1/default/10.1.0.1", // the other pod's namespace stays at home
		"state/nodes/v1/meadow/node-1",
		"state/services/v1/meadow/shop/web",
		"synced/meadow/cilium/state/identities/v1", "synced/meadow/cilium/state/ip/v1",
		"synced/meadow/cilium/state/nodes/v1", "synced/meadow/cilium/state/serviceexports/v1",
		"synced/meadow/cilium/state/services/v1",
	}

	first := startReplica(t, flags...)
	requireKeys(t, first.client, local)
	requireKeys(t, forMesh.Client(), remote)
	requireCanaryLast(t, first.client, "ip/v1")
	requireCanaryLast(t, forMesh.Client(), "ip/v1")

	// One that doesn't lead serves agents all the same.
	second := startReplica(t, flags...)
	requireKeys(t, second.client, local)

	first.requireJobs("exporter", "cache")
	second.requireJobs("cache")

	first.kill()
	createPod(t, server, "shop", "web-2", "10.1.0.3")
	local, remote = with(local, "state/ip/v1/default/10.1.0.3"), with(remote, "state/ip/v1/default/10.1.0.3")
	requireKeys(t, second.client, local)
	requireKeys(t, forMesh.Client(), remote) // after the lease of the first has run out
}

// fill creates a cluster with a namespace that others see, and one that they don't.
func fill(t *testing.T, server *kubeapi.Server) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, server.CreateNamespace(ctx, "shop"))
	_, err := server.Kubernetes.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "home", Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "false"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = server.Kubernetes.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, server.CreateNode(ctx, &wire.Node{Name: "node-1", Cluster: "meadow",
		Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: netip.MustParseAddr("172.18.0.2")}},
		PodCIDRs4: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}))
	require.NoError(t, server.CreateIdentity(ctx, "65536", map[string]string{
		"k8s:app": "web", "k8s:" + wire.LabelCluster: "meadow", "k8s:" + wire.LabelNamespace: "shop"}))
	createPod(t, server, "shop", "web-1", "10.1.0.1")
	createPod(t, server, "home", "web-1", "10.1.0.2")
	for _, namespace := range []string{"shop", "home"} {
		require.NoError(t, server.CreateGlobalService(ctx, namespace, "web"))
		require.NoError(t, server.CreateBackends(ctx, namespace, "web", []netip.Addr{netip.MustParseAddr("10.1.0.1")}))
	}
}

// createPod creates a pod and its endpoint, which the operator would otherwise delete.
func createPod(t *testing.T, server *kubeapi.Server, namespace, name, address string) {
	t.Helper()
	require.NoError(t, server.CreatePod(t.Context(), namespace, name, nil, nil))
	require.NoError(t, server.CreateEndpoint(t.Context(), &wire.Endpoint{
		Prefix: netip.PrefixFrom(netip.MustParseAddr(address), 32), HostIP: netip.MustParseAddr("172.18.0.2"),
		Namespace: namespace, Pod: name, Identity: 65536, ServiceAccount: "default",
	}, nil))
}

func with(keys []string, more string) []string {
	out := append(slices.Clone(keys), more)
	slices.Sort(out)
	return out
}

// requireKeys waits until an etcd holds exactly these.
func requireKeys(t *testing.T, client *etcd.Client, want []string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, want, keys(t, client))
	}, patience, tick)
}

// requireCanaryLast fails where an etcd called a resource complete before it was.
func requireCanaryLast(t *testing.T, client *etcd.Client, resource string) {
	t.Helper()
	canary, err := client.Etcd().Get(t.Context(), "cilium/synced/meadow/cilium/state/"+resource)
	require.NoError(t, err)
	require.Len(t, canary.Kvs, 1)
	entries, err := client.Etcd().Get(t.Context(), "cilium/state/"+resource, clientv3.WithPrefix())
	require.NoError(t, err)
	for _, entry := range entries.Kvs {
		require.Less(t, entry.CreateRevision, canary.Kvs[0].CreateRevision, "%s", entry.Key)
	}
}
