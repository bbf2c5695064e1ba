// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package bridge_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/annotation"
	"github.com/cilium/cilium/pkg/clustermesh"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/cilium/pkg/identity"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimdiscoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/jobs"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// globalService makes a service of all clusters, with a backend in this one.
func (c *cluster) globalService(t *testing.T, in, name, backend string) {
	t.Helper()
	_, err := c.objects.Slim().CoreV1().Services(in).Create(t.Context(), &slimcorev1.Service{
		ObjectMeta: slimmetav1.ObjectMeta{
			Name: name, Namespace: in, Annotations: map[string]string{annotation.GlobalService: "true"},
		},
		Spec: slimcorev1.ServiceSpec{
			ClusterIP: fmt.Sprintf("10.96.%d.7", c.ID), ClusterIPs: []string{fmt.Sprintf("10.96.%d.7", c.ID)},
			Ports: []slimcorev1.ServicePort{{Name: "http", Port: 80, Protocol: slimcorev1.ProtocolTCP}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	c.backend(t, in, name, name+"-0", backend)
}

// backend gives a service one more.
func (c *cluster) backend(t *testing.T, in, service, slice, address string) {
	t.Helper()
	_, err := c.objects.Slim().DiscoveryV1().EndpointSlices(in).Create(t.Context(), &slimdiscoveryv1.EndpointSlice{
		ObjectMeta: slimmetav1.ObjectMeta{
			Name: slice, Namespace: in, Labels: map[string]string{slimdiscoveryv1.LabelServiceName: service},
		},
		AddressType: slimdiscoveryv1.AddressTypeIPv4,
		Endpoints:   []slimdiscoveryv1.Endpoint{{Addresses: []string{address}}},
		Ports: []slimdiscoveryv1.EndpointPort{{
			Name: ptr.To("http"), Port: ptr.To(int32(8080)), Protocol: ptr.To(slimcorev1.ProtocolTCP),
		}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// meshParts are what the agent has of remote clusters, beside what all tests look at.
type meshParts struct {
	cell.In

	Backends statedb.Table[*loadbalancer.Backend]
	Mesh     *clustermesh.ClusterMesh
	Writer   *state.Writer
}

// backends waits until upstream's load balancer has these backends of a service, and of
// clusters that aren't its own.
func (p *meshParts) backends(t *testing.T, a *hostagent.Agent, in, service string, want ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var got []string
		for backend := range p.Backends.All(a.DB.ReadTxn()) {
			of := backend.GetInstance(loadbalancer.NewServiceName(in, service))
			if of != nil && of.ClusterID != 0 {
				got = append(got, fmt.Sprintf("%d %s", of.ClusterID, backend.Address.String()))
			}
		}
		require.ElementsMatch(c, want, got)
	}, patience, tick)
}

// shell runs a command that can't fail.
func shell(t require.TestingT, a *hostagent.Agent, command string) string {
	out, err := a.Shell(command)
	require.NoError(t, err, "%s: %s", command, out)
	return out
}

// degraded are those of ours that aren't as they should be. On-demand resolution isn't:
// there is no kernel's side of it here.
func degraded(a *hostagent.Agent) []string {
	var ids []string
	for id, status := range a.OurHealth() {
		if status.Level == types.LevelDegraded && !strings.HasPrefix(id, "waggle.ondemand.") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestMesh is an agent in a mesh of all sorts: one cluster has opted out of being pushed,
// one is read from a KVStoreMesh, one is away, one has our own ID, and one lies. The bad
// ones degrade themselves, and the agent does with the others what it does with services,
// misses, tables, health and metrics.
func TestMesh(t *testing.T) {
	north, south, thief, liar := newCluster(t, "north", 1), newCluster(t, "south", 2), newCluster(t, "thief", 3), newCluster(t, "liar", 5)
	away, west := mesh.NewCluster(t, "away", 4), mesh.NewCluster(t, "west", 3)
	hidden, seen, stolen, honest := north.identity(t, 1000), south.identity(t, 1000), thief.identity(t, 1000), liar.identity(t, 1000)
	north.create(t, north.endpoint("web-0", "10.1.0.1", hidden))
	north.globalService(t, namespace, "web", "10.1.0.1")
	south.create(t, south.endpoint("web-0", "10.2.0.1", seen))
	south.globalService(t, namespace, "web", "10.2.0.1")
	thief.create(t, thief.endpoint("web-0", "10.9.0.1", stolen))
	liar.create(t, liar.endpoint("web-0", "10.5.0.1", honest))

	directory := mesh.NewDirectory(t)
	for _, c := range []*cluster{south, thief, liar} {
		c.NewExporter(t, c.objects).Start()
	}
	north.NewExporter(t, north.objects, mesh.Flags{"clustermesh-sync-mode": "opt-in"}).Start()
	west.NewKVStoreMesh(t, mesh.NewDirectory(t).Add("south", south.Etcd)).Start()
	directory.Add("north", north.Etcd).Add("south", west.Etcd).Add("thief", thief.Etcd).Add("liar", liar.Etcd).Add("away", away.Etcd)
	away.Etcd.Stop()
	lie(t, liar, "10.5.0.9", uint32(seen))

	var parts meshParts
	probe, had := atFence("10.2.0.1")
	a := newAgent(t, mesh.Flags{
		"clustermesh-config": directory.Path, "clustermesh-ingest": "waggle", "clustermesh-sync-timeout": "5s",
		"enable-ondemand-resolution": "true", "ondemand-pod-cidrs": "north=10.1.0.0/16",
		// It goes with its cluster, and before that for no other reason.
		"ondemand-ttl": "24h",
	}, probe, cell.Invoke(func(p meshParts) { parts = p }))
	a.Start()

	// The agent is ready, with the good clusters' endpoints in its map.
	<-had
	has(t, a, "10.2.0.1", seen, source.ClusterMesh)
	has(t, a, "10.5.0.1", honest, source.ClusterMesh)
	knows(t, a, seen, true)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, 3, parts.Mesh.NumReadyClusters())
		ready := map[string]bool{}
		for _, of := range parts.Mesh.Status().Clusters {
			ready[of.Name] = of.Ready
		}
		require.Equal(c, map[string]bool{"north": true, "south": true, "liar": true, "thief": false, "away": false}, ready)
		require.Equal(c, []string{
			"waggle.remote-clusters.job-remote-away_etcd", "waggle.remote-clusters.job-remote-thief_etcd",
		}, degraded(a))
		row, _, found := parts.Writer.Tables().RemoteClusters.Get(a.DB.ReadTxn(), state.RemoteClusterByName("liar"))
		require.True(c, found)
		require.NotEmpty(c, row.Refused)
	}, patience, tick)
	for _, address := range []string{"10.9.0.1", "10.5.0.9"} {
		_, ok := a.IPCache.LookupByIP(address)
		require.False(t, ok, address)
	}
	require.Nil(t, a.Identities.LookupIdentityByID(t.Context(), stolen))

	// Services: upstream merges what it reads in the views.
	parts.backends(t, a, namespace, "web", "1 10.1.0.1:8080/TCP", "2 10.2.0.1:8080/TCP")
	south.backend(t, namespace, "web", "web-1", "10.2.0.2")
	parts.backends(t, a, namespace, "web", "1 10.1.0.1:8080/TCP", "2 10.2.0.1:8080/TCP", "2 10.2.0.2:8080/TCP")

	// What has opted out isn't there until it is missed.
	_, ok := a.IPCache.LookupByIP("10.1.0.1")
	require.False(t, ok)
	miss(t, a, "10.1.0.1", hidden)
	knows(t, a, hidden, true)

	// What one sees of it.
	for table, text := range map[string]string{
		state.EndpointTable: "10.2.0.1/32", state.IdentityTable: seen.String(), state.NodeTable: "south-node",
		state.ServiceTable: "web", state.RemoteClusterTable: "thief", ondemand.TableName: "10.1.0.1",
		state.ServiceExportTable: "", state.NamespaceTable: "", state.WorkloadTable: "", state.ExportTable: "", state.DatastoreTable: "",
	} {
		// What was resolved is listed after it is in the tables.
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			require.Contains(c, shell(c, a, "db/show waggle-"+table), text, table)
		}, patience, tick)
	}
	require.Equal(t, types.LevelOK, string(a.OurHealth()["waggle.bridge.capacity"].Level))
	require.Contains(t, a.OurHealth(), "waggle.bridge.job-endpoints")
	require.Contains(t, shell(t, a, "db/show health"), "waggle.bridge")
	jobsReport(t, a)
	for metric, value := range map[string]string{
		"waggle_ipcache_wanted_entries": "[1-9][0-9]*", "waggle_ipcache_capacity": "512000", "waggle_ipcache_overflow_entries": "0",
		"waggle_ondemand_entries": "1", "cilium_clustermesh_remote_clusters": "5",
	} {
		require.Regexp(t, `(?m)^`+metric+`\s.*\b`+value+`(\.0+)?$`, shell(t, a, "metrics "+metric))
	}
	require.Contains(t, shell(t, a, "waggle/status"), "away")

	// A cluster goes with its services, and with what was resolved of it.
	directory.Remove("north")
	hasNot(t, a, "10.1.0.1")
	parts.backends(t, a, namespace, "web", "2 10.2.0.1:8080/TCP", "2 10.2.0.2:8080/TCP")
	directory.Remove("south")
	parts.backends(t, a, namespace, "web")

	// After its time what was resolved goes by itself.
	directory.Add("north", north.Etcd)
	// It does so as well where this cluster is read from Kubernetes.
	a.SetFlag("ondemand-ttl", "1s")
	a.SetFlag("datastore", "kubernetes")
	a.Restart()
	<-had
	parts.backends(t, a, namespace, "web", "1 10.1.0.1:8080/TCP")
	miss(t, a, "10.1.0.1", hidden)
	hasNot(t, a, "10.1.0.1")
	knows(t, a, hidden, false)
	require.Contains(t, shell(t, a, "waggle/status -o json"), `"kubernetes"`)
}

// jobsReport: whatever runs of ours in an agent says something of itself.
func jobsReport(t *testing.T, a *hostagent.Agent) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		names, silent := jobs.Silent(maps.Values(a.OurHealth()))
		require.NotEmpty(c, names)
		require.Empty(c, silent)
	}, patience, tick)
}

// miss resolves an address until the agent's ipcache has what comes of it, which it may
// not have for long.
func miss(t *testing.T, a *hostagent.Agent, address string, id identity.NumericIdentity) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		out := shell(c, a, "ondemand/miss "+address)
		got, ok := a.IPCache.LookupByIP(address)
		require.True(c, ok, out)
		require.Equal(c, id, got.ID)
		require.Equal(c, source.ClusterMesh, got.Source)
	}, patience, tick)
}

// lie has a cluster's etcd say that an address has another cluster's identity, once its
// exporter has said what is there.
func lie(t *testing.T, c *cluster, address string, id uint32) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		keys, err := c.Etcd.List(t.Context(), wire.CanaryKey(wire.Endpoints, c.Name, false))
		require.NoError(collect, err)
		require.NotEmpty(collect, keys)
	}, patience, tick)
	value, err := wire.MarshalEndpoint(&wire.Endpoint{
		Prefix: netip.MustParsePrefix(address + "/32"), HostIP: netip.MustParseAddr(c.node()), Identity: id,
	})
	require.NoError(t, err)
	_, err = c.Etcd.Client().Etcd().Put(t.Context(), strings.TrimSuffix(wire.StatePrefix(wire.Endpoints, c.Name), "/")+"/"+address, string(value))
	require.NoError(t, err)
}
