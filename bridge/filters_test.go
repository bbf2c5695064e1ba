// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package bridge_test

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/cilium/pkg/identity"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/host/agent"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// lab is a namespace that isn't global, unless a test has it be.
const lab = "lab"

// fate is what becomes of a pod at an agent of another cluster.
type fate string

const (
	pushed   fate = "it is in the ipcache"
	onDemand fate = "it is there once it was missed"
	unknown  fate = "it isn't there, whatever is done"
)

// said is what a pod says of itself, and what is to become of it by that.
type said struct {
	annotations map[string]string
	fate        fate
}

// scope is the one that the pod's endpoint is exported with.
func (s said) scope() wire.Scope {
	if s.annotations[filter.ScopeKey] == "regional" {
		return wire.ScopeRegional
	}
	return wire.ScopeGlobal
}

func syncs(value string) map[string]string { return map[string]string{filter.SyncKey: value} }

func regional() map[string]string { return map[string]string{filter.ScopeKey: "regional"} }

func both(one, other map[string]string) map[string]string {
	all := maps.Clone(one)
	maps.Copy(all, other)
	return all
}

// filtered is a pod of a remote cluster, with what it says first and what it says later;
// the namespace lab is global later.
type filtered struct {
	of                *cluster
	in, name, address string
	first, later      said
	identity          identity.NumericIdentity
	// pushes: the identity is pushed whatever becomes of the endpoint.
	pushes bool
}

// put has the pod say this.
func (p *filtered) put(t *testing.T, annotations map[string]string) {
	t.Helper()
	require.NoError(t, p.of.objects.SlimFakeClientset.Tracker().Add(&slimcorev1.Pod{
		ObjectMeta: slimmetav1.ObjectMeta{Name: p.name, Namespace: p.in, Annotations: annotations},
	}))
}

// create makes the pod, its endpoint and its identity.
func (p *filtered) create(t *testing.T, n int) {
	t.Helper()
	p.put(t, p.first.annotations)
	p.identity = p.of.identityIn(t, p.in, uint32(1000+n))
	e := p.of.endpoint(p.name, p.address, p.identity)
	e.Namespace = p.in
	require.NoError(t, p.of.objects.CiliumFakeClientset.Tracker().Add(e))
}

// global says whether a namespace is.
func (c *cluster) global(t *testing.T, in string, is bool) {
	t.Helper()
	require.NoError(t, c.objects.SlimFakeClientset.Tracker().Add(&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{
		Name: in, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: fmt.Sprint(is)},
	}}))
}

// is waits until the agent has of a pod what is to become of it before it is missed.
func (p *filtered) is(t *testing.T, a *hostagent.Agent, tables state.Tables, fate fate) {
	t.Helper()
	if fate != pushed {
		hasNot(t, a, p.address)
		knows(t, a, p.identity, p.pushes)
		return
	}
	// What was resolved looks the same in the ipcache.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		row, _, found := tables.Endpoints.Get(a.DB.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(netip.MustParseAddr(p.address))))
		require.True(c, found, p.address)
		require.Equal(c, state.SourceClusterMesh, row.Origin().Source)
	}, patience, tick)
	has(t, a, p.address, p.identity, source.ClusterMesh)
	knows(t, a, p.identity, true)
}

// isMissed has a packet to the pod find none.
func (p *filtered) isMissed(t *testing.T, a *hostagent.Agent, fate fate) {
	t.Helper()
	switch fate {
	case onDemand:
		miss(t, a, p.address, p.identity)
		knows(t, a, p.identity, true)
	case unknown:
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			require.Contains(c, shell(c, a, "ondemand/miss "+p.address), ": "+string(ondemand.OutcomeNegative))
		}, patience, tick)
		_, ok := a.IPCache.LookupByIP(p.address)
		require.False(t, ok, p.address)
	}
}

// own is a pod of the agent's own cluster, which other clusters may not have.
type own struct {
	in, name    string
	address     string
	annotations map[string]string
	// place is where the pod's endpoint is in the cluster's etcd; empty for nowhere.
	place string
}

func (p *own) create(t *testing.T, server *kubeapi.Server, n int) {
	t.Helper()
	id, labels := p.identity(n), map[string]string{
		"k8s:app": p.name, "k8s:" + wire.LabelCluster: "west", "k8s:" + wire.LabelNamespace: p.in,
	}
	require.NoError(t, server.CreateIdentity(t.Context(), id.StringID(), labels))
	require.NoError(t, server.CreatePod(t.Context(), p.in, p.name, nil, p.annotations))
	require.NoError(t, server.CreateEndpoint(t.Context(), &wire.Endpoint{
		Prefix: state.PrefixOf(netip.MustParseAddr(p.address)), HostIP: netip.MustParseAddr("10.0.0.2"),
		Identity: id.Uint32(), Namespace: p.in, Pod: p.name,
	}, labels))
}

func (p *own) identity(n int) identity.NumericIdentity {
	return identity.NumericIdentity(3<<16 + 2000 + n)
}

// rowOf is an endpoint as it is to be in the tables.
func rowOf(address, cluster string, id identity.NumericIdentity, scope wire.Scope) string {
	return fmt.Sprintf("endpoint %s/32 of %s: %d, scope %v", address, cluster, id, scope)
}

// rows are what the tables have.
func rows(a *hostagent.Agent, tables state.Tables) (rows []string) {
	txn := a.DB.ReadTxn()
	for row := range tables.Endpoints.All(txn) {
		ep := row.Endpoint()
		rows = append(rows, fmt.Sprintf("endpoint %s of %s: %d, scope %v", ep.Prefix, row.Origin().Cluster, ep.Identity, ep.Scope))
	}
	for row := range tables.Identities.All(txn) {
		rows = append(rows, fmt.Sprintf("identity %d of %s", row.ID, row.Origin.Cluster))
	}
	for row := range tables.RemoteClusters.All(txn) {
		rows = append(rows, fmt.Sprintf("cluster %s in %s", row.Name, row.Region))
	}
	return rows
}

// TestFilters has an agent among clusters that keep at home what isn't meant to cross, and
// whose own cluster does so as well. Whether it has its own cluster from Kubernetes or from
// the cache, it has of others what they let it, when that changes too, and of its own all;
// and its tables are the same.
func TestFilters(t *testing.T) {
	north, south, east := newCluster(t, "north", 1), newCluster(t, "south", 2), newCluster(t, "east", 4)
	pods := []*filtered{
		// The pods of north opt in, and it is read without a KVStoreMesh.
		{of: north, in: namespace, name: "says-so", address: "10.1.0.1", first: said{syncs("true"), pushed}, later: said{syncs("false"), onDemand}},
		{of: north, in: namespace, name: "silent", address: "10.1.0.2", first: said{nil, onDemand}, later: said{syncs("true"), pushed}},
		{of: north, in: namespace, name: "declines", address: "10.1.0.3", first: said{syncs("false"), onDemand}, later: said{syncs("false"), onDemand}},
		{of: north, in: namespace, name: "mistyped", address: "10.1.0.4", first: said{syncs("yes"), onDemand}, later: said{syncs("yes"), onDemand}},
		{of: north, in: lab, name: "kept", address: "10.1.0.5", first: said{syncs("true"), unknown}, later: said{syncs("true"), pushed}},
		{of: north, in: namespace, name: "regional", address: "10.1.0.6",
			first: said{both(syncs("true"), regional()), pushed}, later: said{both(syncs("true"), regional()), pushed}},
		// What is regional stays in the region of south, and of its identities nothing does.
		{of: south, in: namespace, name: "anywhere", address: "10.2.0.1", pushes: true, first: said{nil, pushed}, later: said{regional(), unknown}},
		{of: south, in: namespace, name: "regional", address: "10.2.0.2", pushes: true, first: said{regional(), unknown}, later: said{nil, pushed}},
		// The region of east is ours.
		{of: east, in: namespace, name: "regional", address: "10.4.0.1", pushes: true, first: said{regional(), pushed}, later: said{regional(), pushed}},
	}
	north.global(t, lab, false)
	for n, p := range pods {
		p.create(t, n)
	}
	// Filters don't touch services, but for those of namespaces.
	north.globalService(t, namespace, "web", "10.1.0.1")
	north.backend(t, namespace, "web", "web-1", "10.1.0.3")
	north.globalService(t, lab, "web", "10.1.0.5")
	south.globalService(t, namespace, "web", "10.2.0.2")
	web := []string{"1 10.1.0.1:8080/TCP", "1 10.1.0.3:8080/TCP", "2 10.2.0.2:8080/TCP"}

	north.NewExporter(t, north.objects, mesh.Flags{"clustermesh-sync-mode": "opt-in", "cluster-region": "us"}).Start()
	south.NewExporter(t, south.objects, mesh.Flags{"cluster-region": "us"}).Start()
	east.NewExporter(t, east.objects, mesh.Flags{"cluster-region": "eu"}).Start()

	// This cluster, whose objects are at a real API server.
	server := kubeapi.Start(t)
	hostagent.AddNode(t, server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	require.NoError(t, server.CreateNamespace(t.Context(), namespace))
	_, err := server.Kubernetes.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: lab, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "false"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	west := mesh.NewCluster(t, "west", 3)
	elsewhere := wire.StatePrefix(wire.Endpoints, west.Name)
	owned := []*own{
		{in: namespace, name: "says-so", address: "10.3.0.1", annotations: syncs("true"), place: elsewhere},
		{in: namespace, name: "declines", address: "10.3.0.2", annotations: syncs("false"), place: wire.OnDemandEndpointPrefix},
		{in: namespace, name: "regional", address: "10.3.0.3", annotations: both(syncs("true"), regional()), place: elsewhere},
		{in: lab, name: "kept", address: "10.3.0.4", annotations: syncs("true")},
	}
	for n, p := range owned {
		p.create(t, server, n)
	}
	kubeconfig := mesh.Flags{"k8s-kubeconfig-path": server.Kubeconfig}
	cache := west.NewCacheFrom(t, kubeconfig)
	cache.Start()
	west.NewExporterFrom(t, kubeconfig, mesh.Flags{"clustermesh-sync-mode": "opt-in", "cluster-region": "eu"}).Start()
	west.NewKVStoreMesh(t, mesh.NewDirectory(t).Add("south", south.Etcd).Add("east", east.Etcd), mesh.Flags{"cluster-region": "eu"}).Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var want, got []string
		for _, p := range owned {
			if p.place != "" {
				want = append(want, p.place+p.address)
			}
		}
		for _, prefix := range []string{elsewhere, wire.OnDemandEndpointPrefix} {
			keys, err := west.Etcd.List(t.Context(), prefix)
			require.NoError(c, err)
			for key := range keys {
				got = append(got, key)
			}
		}
		require.ElementsMatch(c, want, got)
	}, patience, tick)

	// What the tables are to have, at first and in both modes.
	want := []string{"cluster north in us", "cluster south in us", "cluster east in eu"}
	for _, p := range pods {
		if p.first.fate == pushed {
			want = append(want, rowOf(p.address, p.of.Name, p.identity, p.first.scope()))
		}
		if p.first.fate == pushed || p.pushes {
			want = append(want, fmt.Sprintf("identity %d of %s", p.identity, p.of.Name))
		}
	}
	for n, p := range owned {
		want = append(want, rowOf(p.address, west.Name, p.identity(n), wire.ScopeGlobal), fmt.Sprintf("identity %d of %s", p.identity(n), west.Name))
	}

	for _, datastore := range []string{inclustercache.DatastoreKubernetes, inclustercache.DatastoreEtcd} {
		t.Run(datastore, func(t *testing.T) {
			flags := mesh.Flags{
				"cluster-name": west.Name, "cluster-id": "3", "datastore": datastore,
				"clustermesh-config":         mesh.NewDirectory(t).Add("north", north.Etcd).Add("south", west.Etcd).Add("east", west.Etcd).Path,
				"clustermesh-ingest":         "waggle",
				"enable-ondemand-resolution": "true", "ondemand-ttl": "24h",
				"ondemand-pod-cidrs": "north=10.1.0.0/16,south=10.2.0.0/16,east=10.4.0.0/16",
			}
			if datastore == inclustercache.DatastoreEtcd {
				flags["kvstore-opt"], flags["incluster-cache-relist-jitter"] = "etcd.address="+cache.URL(), "10ms"
			}
			var parts meshParts
			a := hostagent.New(t, hostagent.Config{Server: server, Node: "one", Flags: flags,
				Cells: []cell.Cell{agent.Cells, cell.Invoke(func(p meshParts) { parts = p })}})
			a.Start()
			tables := parts.Writer.Tables()
			ours := func() {
				t.Helper()
				for n, p := range owned {
					has(t, a, p.address, p.identity(n), source.CustomResource)
					knows(t, a, p.identity(n), true)
				}
			}

			ours()
			for _, p := range pods {
				p.is(t, a, tables, p.first.fate)
			}
			parts.backends(t, a, namespace, "web", web...)
			parts.backends(t, a, lab, "web")
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				require.ElementsMatch(c, want, rows(a, tables))
			}, patience, tick)

			for _, p := range pods {
				p.put(t, p.later.annotations)
			}
			north.global(t, lab, true)
			for _, p := range pods {
				p.is(t, a, tables, p.later.fate)
			}
			parts.backends(t, a, namespace, "web", web...)
			parts.backends(t, a, lab, "web", "1 10.1.0.5:8080/TCP")
			for _, p := range pods {
				p.isMissed(t, a, p.later.fate)
			}
			ours()

			// What was resolved before gives way to what is pushed, and the other way round.
			north.global(t, lab, false)
			for _, p := range pods {
				p.put(t, p.first.annotations)
			}
			for _, p := range pods {
				if p.first.fate == pushed || p.later.fate != onDemand {
					p.is(t, a, tables, p.first.fate)
				}
				p.isMissed(t, a, p.first.fate)
			}
			parts.backends(t, a, lab, "web")
			a.Stop()
		})
	}
}
