// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package bridge_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/pkg/endpoint/regeneration"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/ipcache"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/cilium/pkg/node/addressing"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/policy/api"
	policytypes "github.com/cilium/cilium/pkg/policy/types"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/host/agent"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	patience = 3 * time.Minute
	tick     = 10 * time.Millisecond
	// namespace is that of all pods here.
	namespace = "shop"
)

// cluster is one whose objects a test changes, and which exports them.
type cluster struct {
	*mesh.Cluster
	objects *mesh.Objects
}

func newCluster(t *testing.T, name string, id uint32) *cluster {
	t.Helper()
	c := &cluster{mesh.NewCluster(t, name, id), mesh.NewObjects(t)}
	_, err := c.objects.Slim().CoreV1().Namespaces().Create(t.Context(),
		&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = c.objects.CiliumV2().CiliumNodes().Create(t.Context(), &ciliumv2.CiliumNode{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-node"},
		Spec: ciliumv2.NodeSpec{Addresses: []ciliumv2.NodeAddress{
			{Type: addressing.NodeInternalIP, IP: c.node()},
		}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return c
}

func (c *cluster) node() string { return fmt.Sprintf("172.18.%d.2", c.ID) }

// identity is the number of an identity of the cluster, with its labels.
func (c *cluster) identity(t *testing.T, n uint32) identity.NumericIdentity {
	t.Helper()
	return c.identityIn(t, namespace, n)
}

// identityIn is one of another namespace.
func (c *cluster) identityIn(t *testing.T, in string, n uint32) identity.NumericIdentity {
	t.Helper()
	id := c.ID<<16 + n
	_, err := c.objects.CiliumV2().CiliumIdentities().Create(t.Context(), &ciliumv2.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: strconv.FormatUint(uint64(id), 10)},
		SecurityLabels: map[string]string{
			"k8s:app":                          "app-" + strconv.FormatUint(uint64(n), 10),
			"k8s:io.cilium.k8s.policy.cluster": c.Name,
			"k8s:io.kubernetes.pod.namespace":  in,
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return identity.NumericIdentity(id)
}

func (c *cluster) endpoint(name, address string, id identity.NumericIdentity) *ciliumv2.CiliumEndpoint {
	return &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: int64(id)},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: address}}, NodeIP: c.node(),
			},
		},
	}
}

func (c *cluster) create(t *testing.T, e *ciliumv2.CiliumEndpoint) {
	t.Helper()
	_, err := c.objects.CiliumV2().CiliumEndpoints(namespace).Create(t.Context(), e, metav1.CreateOptions{})
	require.NoError(t, err)
}

func (c *cluster) update(t *testing.T, e *ciliumv2.CiliumEndpoint) {
	t.Helper()
	old, err := c.objects.CiliumV2().CiliumEndpoints(namespace).Get(t.Context(), e.Name, metav1.GetOptions{})
	require.NoError(t, err)
	e.ResourceVersion = old.ResourceVersion
	_, err = c.objects.CiliumV2().CiliumEndpoints(namespace).Update(t.Context(), e, metav1.UpdateOptions{})
	require.NoError(t, err)
}

func (c *cluster) delete(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, c.objects.CiliumV2().CiliumEndpoints(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
}

// newAgent is upstream's agent with our cells.
func newAgent(t *testing.T, flags mesh.Flags, more ...cell.Cell) *hostagent.Agent {
	t.Helper()
	server := kubeapi.Start(t)
	hostagent.AddNode(t, server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	all := mesh.Flags{"cluster-name": "west", "cluster-id": "3"}
	for name, value := range flags {
		all[name] = value
	}
	return hostagent.New(t, hostagent.Config{Server: server, Node: "one", Flags: all, Cells: append([]cell.Cell{agent.Cells}, more...)})
}

// atFence has the agent say what its ipcache had of an address when endpoints were let
// back into the datapath, the map of which they then see.
func atFence(address string) (cell.Cell, <-chan identity.NumericIdentity) {
	had := make(chan identity.NumericIdentity, 1)
	return cell.Invoke(func(jobs job.Group, fence regeneration.Fence, ipc *ipcache.IPCache) {
		jobs.Add(job.OneShot("at-fence", func(ctx context.Context, _ cell.Health) error {
			if err := fence.Wait(ctx); err != nil {
				return nil
			}
			id, _ := ipc.LookupByIP(address)
			had <- id.ID
			return nil
		}))
	}), had
}

// has waits until the agent's ipcache has an address with an identity behind a node.
func has(t *testing.T, a *hostagent.Agent, address string, id identity.NumericIdentity, from source.Source) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		got, ok := a.IPCache.LookupByIP(address)
		require.True(c, ok, address)
		require.Equal(c, id, got.ID)
		require.Equal(c, from, got.Source)
	}, patience, tick)
}

func hasNot(t *testing.T, a *hostagent.Agent, address string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, ok := a.IPCache.LookupByIP(address)
		require.False(c, ok, address)
	}, patience, tick)
}

// knows waits until the agent knows an identity's labels.
func knows(t *testing.T, a *hostagent.Agent, id identity.NumericIdentity, known bool) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, known, a.Identities.LookupIdentityByID(t.Context(), id) != nil, id)
	}, patience, tick)
}

func createNamespace(t *testing.T, a *hostagent.Agent) {
	t.Helper()
	_, err := a.Clientset.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// allowEgress lets the client talk with the first app's pods, to a port by its name.
func allowEgress(t *testing.T, a *hostagent.Agent, port string) {
	t.Helper()
	_, err := a.Clientset.CiliumV2().CiliumNetworkPolicies(namespace).Create(t.Context(), &ciliumv2.CiliumNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "to-port", Namespace: namespace},
		Spec: &api.Rule{
			EndpointSelector: api.NewESFromMatchRequirements(map[string]string{"any.app": "client"}, nil),
			Egress: []api.EgressRule{{
				EgressCommonRule: api.EgressCommonRule{ToEndpoints: []api.EndpointSelector{
					api.NewESFromMatchRequirements(map[string]string{"any.app": "app-1000"}, nil),
				}},
				ToPorts: api.PortRules{{Ports: []api.PortProtocol{{Port: port, Protocol: api.ProtoTCP}}}},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// allows says whether the policy in force at a pod has a rule for this peer and port.
func allows(pod *hostagent.Pod, peer identity.NumericIdentity, port uint16) bool {
	_, ok := pod.Endpoint.GetPolicyCorrelationInfoForKey(policytypes.EgressKey().WithIdentity(peer).WithTCPPort(port))
	return ok
}

// TestRemoteClusters has what two remote clusters export come to an agent by way of our
// tables, change and go, and be there again after a restart.
func TestRemoteClusters(t *testing.T) {
	north, south := newCluster(t, "north", 1), newCluster(t, "south", 2)
	directory := mesh.NewDirectory(t)
	for _, c := range []*cluster{north, south} {
		c.NewExporter(t, c.objects).Start()
		directory.Add(c.Name, c.Etcd)
	}
	one, other := north.identity(t, 1000), north.identity(t, 1001)
	third := south.identity(t, 1000)
	north.create(t, north.endpoint("web-0", "10.1.0.1", one))
	south.create(t, south.endpoint("web-0", "10.2.0.1", third))

	probe, had := atFence("10.1.0.1")
	a := newAgent(t, mesh.Flags{"clustermesh-config": directory.Path, "clustermesh-ingest": "waggle"}, probe)
	a.Start()
	require.Equal(t, one, <-had)
	has(t, a, "10.1.0.1", one, source.ClusterMesh)
	has(t, a, "10.2.0.1", third, source.ClusterMesh)
	knows(t, a, one, true)
	knows(t, a, third, true)
	require.Equal(t, &ipcache.K8sMetadata{Namespace: namespace, PodName: "web-0"},
		a.IPCache.GetK8sMetadata(netip.MustParseAddr("10.1.0.1")))
	for _, c := range []*cluster{north, south} {
		require.EventuallyWithT(t, func(collect *assert.CollectT) {
			require.Contains(collect, a.Nodes.GetNodes(), nodetypes.Identity{Cluster: c.Name, Name: c.Name + "-node"})
		}, patience, tick)
	}

	// It changes.
	north.update(t, north.endpoint("web-0", "10.1.0.1", other))
	has(t, a, "10.1.0.1", other, source.ClusterMesh)
	knows(t, a, other, true)

	// An address that is claimed by Kubernetes as well is that one's, and ours again.
	a.IPCache.Upsert("10.2.0.1", nil, 0, nil, ipcache.Identity{ID: 4711, Source: source.CustomResource})
	has(t, a, "10.2.0.1", 4711, source.CustomResource)
	a.IPCache.Delete("10.2.0.1", source.CustomResource) //nolint:staticcheck // as upstream's watcher does
	has(t, a, "10.2.0.1", third, source.ClusterMesh)

	// A policy that names it.
	createNamespace(t, a)
	a.AddPod(namespace, "client", map[string]string{"app": "client"})
	_, err := a.Clientset.CiliumV2().CiliumNetworkPolicies(namespace).Create(t.Context(), &ciliumv2.CiliumNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "to-south", Namespace: namespace},
		Spec: &api.Rule{
			EndpointSelector: api.NewESFromMatchRequirements(map[string]string{"any.app": "client"}, nil),
			Egress: []api.EgressRule{{EgressCommonRule: api.EgressCommonRule{ToEndpoints: []api.EndpointSelector{
				api.NewESFromMatchRequirements(map[string]string{
					"any.app": "app-1000", "k8s.io.cilium.k8s.policy.cluster": "south",
				}, nil),
			}}}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var selected []string
		for _, of := range a.Policy.GetSelectorCache().GetModel() {
			if slices.Contains(of.Identities, int64(third)) && strings.Contains(of.Selector, "south") {
				selected = append(selected, of.Selector)
			}
		}
		require.NotEmpty(c, selected)
	}, patience, tick)

	a.Restart()
	require.Equal(t, other, <-had)
	has(t, a, "10.1.0.1", other, source.ClusterMesh)
	has(t, a, "10.2.0.1", third, source.ClusterMesh)
	knows(t, a, third, true)

	// It goes, and so does a cluster.
	north.delete(t, "web-0")
	hasNot(t, a, "10.1.0.1")
	directory.Remove("south")
	hasNot(t, a, "10.2.0.1")
	knows(t, a, third, false)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NotContains(c, a.Nodes.GetNodes(), nodetypes.Identity{Cluster: "south", Name: "south-node"})
	}, patience, tick)
}

// TestLocalCluster has an agent take its own cluster from the in-cluster cache, in a mesh
// whose other cluster is away: the agent is ready nonetheless, and its own cluster is all
// there.
func TestLocalCluster(t *testing.T) {
	west, away := newCluster(t, "west", 3), mesh.NewCluster(t, "away", 4)
	cache := west.NewCache(t, west.objects)
	cache.Start()
	id := west.identity(t, 1000)
	pod := west.endpoint("web-0", "10.244.7.1", id)
	pod.Status.NamedPorts = models.NamedPorts{{Name: "http", Port: 8080, Protocol: "TCP"}}
	west.create(t, pod)
	directory := mesh.NewDirectory(t).Add(away.Name, away.Etcd)
	away.Etcd.Stop()

	probe, had := atFence("10.244.7.1")
	var parts meshParts
	a := newAgent(t, mesh.Flags{
		"datastore": "etcd", "kvstore-opt": "etcd.address=" + cache.URL(), "incluster-cache-relist-jitter": "10ms",
		"clustermesh-config": directory.Path, "clustermesh-ingest": "waggle", "clustermesh-sync-timeout": "1s",
	}, probe, cell.Invoke(func(p meshParts) { parts = p }))
	a.Start()
	require.Equal(t, id, <-had)
	has(t, a, "10.244.7.1", id, source.CustomResource)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Contains(c, a.Nodes.GetNodes(), nodetypes.Identity{Cluster: "west", Name: "west-node"})
		require.Equal(c, []string{"waggle.remote-clusters.job-remote-away_etcd"}, degraded(a))
		require.Zero(c, parts.Mesh.NumReadyClusters())
	}, patience, tick)
	jobsReport(t, a)

	// A policy that names a port has its number, and the next one.
	createNamespace(t, a)
	client := a.AddPod(namespace, "client", map[string]string{"app": "client"})
	allowEgress(t, a, "http")
	ports := func(want ...uint16) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			for _, port := range []uint16{8080, 9090} {
				require.Equal(c, slices.Contains(want, port), allows(client, id, port), port)
			}
		}, patience, tick)
	}
	ports(8080)
	pod.Status.NamedPorts[0].Port = 9090
	west.update(t, pod)
	ports(9090)

	a.Restart()
	require.Equal(t, id, <-had)
	has(t, a, "10.244.7.1", id, source.CustomResource)
	client = a.AddPod(namespace, "client-2", map[string]string{"app": "client"})
	ports(9090)
	west.delete(t, "web-0")
	hasNot(t, a, "10.244.7.1")
	ports()
}
