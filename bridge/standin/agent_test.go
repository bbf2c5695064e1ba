// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package standin_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/endpoint"
	"github.com/cilium/cilium/pkg/identity"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	hostcells "github.com/waggle-mesh/waggle/cells/host/agent"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	// patience is for a machine that builds meanwhile.
	patience = 2 * time.Minute
	// tick is the pause between two looks.
	tick = 20 * time.Millisecond
)

// rig is an agent with its API server, and the cache that it may read.
type rig struct {
	t      *testing.T
	server *kubeapi.Server
	agent  *hostagent.Agent
	cache  *mesh.Cache
	// before are the watches that there were before the agent.
	before map[string]float64
	writer *state.Writer
	// ofSlices: endpoints are read from CiliumEndpointSlices.
	ofSlices bool
}

// watched are the resources that the agent watches all over its cluster.
var watched = []string{"ciliumendpoints", "ciliumendpointslices", "ciliumidentities", "ciliumnodes"}

// newRig makes one of the cluster west, to be started.
func newRig(t *testing.T, datastore string, flags mesh.Flags) *rig {
	r := &rig{t: t, server: kubeapi.Start(t), before: map[string]float64{}, ofSlices: flags["enable-cilium-endpoint-slice"] == "true"}
	hostagent.AddNode(t, r.server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	require.NoError(t, r.server.CreateNamespace(t.Context(), "meadow"))

	west := &mesh.Cluster{Name: "west", ID: 2}
	r.cache = west.NewCacheFrom(t, mesh.Flags{"k8s-kubeconfig-path": r.server.Kubeconfig},
		mesh.Flags{"enable-cilium-endpoint-slice": strconv.FormatBool(r.ofSlices)})
	r.cache.Start()
	// The cache watches as well, and isn't to be taken for the agent.
	endpoints := "ciliumendpoints"
	if r.ofSlices {
		endpoints = "ciliumendpointslices"
	}
	r.eventually(func() bool {
		return r.watches(endpoints) > 0 && r.watches("ciliumidentities") > 0 && r.watches("ciliumnodes") > 0
	}, "the cache doesn't watch")
	for _, resource := range watched {
		r.before[resource] = r.watches(resource)
	}

	all := mesh.Flags{"cluster-name": "west", "cluster-id": "2", "datastore": datastore}
	if datastore == inclustercache.DatastoreEtcd {
		all["kvstore-opt"] = "etcd.address=" + r.cache.URL()
	}
	for name, value := range flags {
		all[name] = value
	}
	r.agent = hostagent.New(t, hostagent.Config{
		Server: r.server, Node: "one", Flags: all,
		Cells: []cell.Cell{hostcells.Cells, cell.Invoke(func(w *state.Writer) { r.writer = w })},
	})
	return r
}

// watches are the watches on a resource that are open at the API server.
func (r *rig) watches(resource string) float64 {
	n, err := r.server.Metric(r.t.Context(), "apiserver_longrunning_requests", map[string]string{"verb": "WATCH", "resource": resource})
	require.NoError(r.t, err)
	return n
}

// own are those of the agent.
func (r *rig) own() map[string]float64 {
	own := map[string]float64{}
	for _, resource := range watched {
		own[resource] = r.watches(resource) - r.before[resource]
	}
	return own
}

// eventually waits for a condition, which may fail the test.
func (r *rig) eventually(condition func() bool, format string, args ...any) {
	r.t.Helper()
	look := func(context.Context) (bool, error) { return condition(), nil }
	if err := wait.PollUntilContextTimeout(r.t.Context(), tick, patience, true, look); err != nil {
		require.FailNow(r.t, fmt.Sprintf(format, args...))
	}
}

// endpointUID is that of the CiliumEndpoint of a pod; empty if there is none.
func (r *rig) endpointUID(pod *hostagent.Pod) types.UID {
	found, err := r.server.Cilium.CiliumV2().CiliumEndpoints(pod.Namespace).Get(r.t.Context(), pod.Name, metav1.GetOptions{})
	if k8serrors.IsNotFound(err) {
		return ""
	}
	require.NoError(r.t, err)
	return found.UID
}

// endpoint is the CiliumEndpoint of a pod, which has to be there.
func (r *rig) endpoint(pod *hostagent.Pod) *ciliumv2.CiliumEndpoint {
	found, err := r.server.Cilium.CiliumV2().CiliumEndpoints(pod.Namespace).Get(r.t.Context(), pod.Name, metav1.GetOptions{})
	require.NoError(r.t, err)
	return found
}

// inTable says whether the table has the endpoint of a pod.
func (r *rig) inTable(pod *hostagent.Pod) bool {
	_, _, ok := r.writer.Tables().Endpoints.Get(r.writer.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(pod.Address)))
	return ok
}

// none is that the agent watches nothing but its own CiliumNode.
var none = map[string]float64{"ciliumendpoints": 0, "ciliumendpointslices": 0, "ciliumidentities": 0, "ciliumnodes": 1}

// requireNoMore is that the agent watches no more than its own CiliumNode. It may be less
// for a moment, when a watch is opened anew, be it the cache's or the agent's.
func (r *rig) requireNoMore() {
	r.t.Helper()
	for resource, watches := range r.own() {
		require.LessOrEqual(r.t, watches, none[resource], "watches on %s", resource)
	}
}

// syncRuns are how often upstream's controller that writes the CiliumEndpoint of a pod
// has run, and has failed.
func (r *rig) syncRuns(pod *hostagent.Pod) (runs, failures int64) {
	name := endpoint.EndpointSyncControllerName(pod.Endpoint.ID)
	for _, status := range pod.Endpoint.GetModel().Status.Controllers {
		if status.Name == name {
			return status.Status.SuccessCount + status.Status.FailureCount, status.Status.FailureCount
		}
	}
	return 0, 0
}

// TestNoWatches has pods come and go for a minute, at an agent that reads its cluster's
// state from the in-cluster cache: none of the watches is opened, be it at the start or
// by what runs for each endpoint.
func TestNoWatches(t *testing.T) {
	r := newRig(t, inclustercache.DatastoreEtcd, nil)
	r.testNoWatches(time.Minute)
}

// TestNoWatchesOfSlices is the same with CiliumEndpointSlices, which are the test's own:
// there is no operator that makes them.
func TestNoWatchesOfSlices(t *testing.T) {
	r := newRig(t, inclustercache.DatastoreEtcd, mesh.Flags{"enable-cilium-endpoint-slice": "true"})
	// Whether an endpoint is there is asked for every 10 s.
	r.testNoWatches(30 * time.Second)
}

func (r *rig) testNoWatches(span time.Duration) {
	t := r.t
	r.agent.Start()
	r.eventually(func() bool { return r.own()["ciliumnodes"] == 1 }, "the agent doesn't watch its own node")
	require.NoError(t, r.agent.Identities.WaitForInitialGlobalIdentities(t.Context()))

	far := r.addElsewhere()
	r.eventually(func() bool {
		id, ok := r.agent.IPCache.LookupByIP(far.Prefix.Addr().String())
		_, node := r.agent.Nodes.GetNodes()[nodetypes.Identity{Cluster: "west", Name: "two"}]
		return ok && node && id.ID.Uint32() == far.Identity && r.agent.Identities.LookupIdentityByID(t.Context(), id.ID) != nil
	}, "what is on another node isn't known here")

	stays := r.addPod("stays")
	uid := r.endpointUID(stays)
	begun := time.Now()
	for i := 0; time.Since(begun) < span; i++ {
		comes := r.addPod(fmt.Sprintf("comes-%d", i))
		r.requireNoMore()
		r.deletePod(comes)
		r.requireNoMore()
	}
	require.Equal(t, uid, r.endpointUID(stays), "the endpoint was thought to be gone, and was created anew")
}

// addElsewhere makes another node, and an endpoint on it.
func (r *rig) addElsewhere() *wire.Endpoint {
	r.t.Helper()
	ctx, labels := r.t.Context(), map[string]string{"k8s:io.kubernetes.pod.namespace": "meadow", "k8s:app": "far", "k8s:io.cilium.k8s.policy.cluster": "west"}
	far := &wire.Endpoint{
		Prefix: netip.MustParsePrefix("10.244.2.7/32"), HostIP: netip.MustParseAddr("10.0.0.2"),
		Identity: 131500, Namespace: "meadow", Pod: "far",
	}
	require.NoError(r.t, r.server.CreateNode(ctx, &wire.Node{
		Name: "two", Cluster: "west", ClusterID: 2, PodCIDRs4: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")},
		Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: far.HostIP}},
	}))
	require.NoError(r.t, r.server.CreateIdentity(ctx, "131500", labels))
	if r.ofSlices {
		_, err := r.server.CreateSlice(ctx, "ces-far", "meadow", []wire.Endpoint{*far})
		require.NoError(r.t, err)
	} else {
		require.NoError(r.t, r.server.CreateEndpoint(ctx, far, labels))
	}
	return far
}

// addPod adds a pod with an identity of its own, and waits until what the agent has made
// of it has come back by the cache.
func (r *rig) addPod(name string) *hostagent.Pod {
	r.t.Helper()
	pod := r.agent.AddPod("meadow", name, map[string]string{"app": name})
	r.eventually(func() bool { return r.endpointUID(pod) != "" }, "there is no CiliumEndpoint of %s", name)
	identity, err := pod.Endpoint.GetSecurityIdentity()
	require.NoError(r.t, err)
	_, err = r.identity(identity.ID)
	require.NoError(r.t, err, "the identity of %s isn't in Kubernetes", name)
	if r.ofSlices {
		_, err := r.server.CreateSlice(r.t.Context(), "ces-"+name, "meadow", []wire.Endpoint{{
			Prefix: state.PrefixOf(pod.Address), HostIP: netip.MustParseAddr("10.0.0.1"),
			Identity: identity.ID.Uint32(), Namespace: "meadow", Pod: name,
		}})
		require.NoError(r.t, err)
	}
	r.eventually(func() bool { return r.inTable(pod) }, "the endpoint of %s isn't in the table", name)
	return pod
}

func (r *rig) deletePod(pod *hostagent.Pod) {
	r.t.Helper()
	r.agent.DeletePod(pod)
	if r.ofSlices {
		err := r.server.Cilium.CiliumV2alpha1().CiliumEndpointSlices().Delete(r.t.Context(), "ces-"+pod.Name, metav1.DeleteOptions{})
		require.NoError(r.t, err)
	}
	r.eventually(func() bool { return !r.inTable(pod) }, "the endpoint of %s is still in the table", pod.Name)
}

func (r *rig) identity(id identity.NumericIdentity) (*ciliumv2.CiliumIdentity, error) {
	return r.server.Cilium.CiliumV2().CiliumIdentities().Get(r.t.Context(), id.StringID(), metav1.GetOptions{})
}

// TestWatches is that the same agent watches without the cache.
func TestWatches(t *testing.T) {
	r := newRig(t, inclustercache.DatastoreKubernetes, nil)
	r.agent.Start()
	r.addPod("comes")
	r.eventually(func() bool {
		own := r.own()
		return own["ciliumendpoints"] > 0 && own["ciliumidentities"] > 0 && own["ciliumnodes"] > 1
	}, "the watches that aren't to be opened with the cache can't be seen")
}

// TestCacheAway is an agent whose cache is away at the start, later, and when it has
// identities allocated; which it does at the API server, whatever the cache does.
func TestCacheAway(t *testing.T) {
	// An endpoint whose policy is computed anew at intervals may have another status then.
	r := newRig(t, inclustercache.DatastoreEtcd, mesh.Flags{"endpoint-regen-interval": "1h"})
	r.cache.Cut()
	r.agent.Start()
	r.eventually(func() bool {
		for status := range r.agent.Health.All(r.agent.DB.ReadTxn()) {
			if string(status.Level) == string(cell.StatusDegraded) && strings.Contains(status.ID.String(), "await-cluster") {
				return strings.Contains(status.Message, "since")
			}
		}
		return false
	}, "an agent that waits for the cache doesn't say so")
	r.agent.Stop() // nothing that waits for the cache keeps it

	r.cache.Heal()
	r.agent.Start()
	require.NoError(t, r.agent.Identities.WaitForInitialGlobalIdentities(t.Context()))
	bee := r.addPod("bee")
	// How long that took is in the agent's registry.
	r.eventually(func() bool {
		said, err := r.agent.Shell("metrics endpoint_propagation_delay_seconds")
		require.NoError(t, err, said)
		return strings.Contains(said, "cilium_endpoint_propagation_delay_seconds")
	}, "the agent doesn't say how long a pod took to come back")

	r.cache.Cut()
	wasp := r.agent.AddPod("meadow", "wasp", map[string]string{"app": "wasp"})
	r.eventually(func() bool { return r.endpointUID(wasp) != "" }, "there is no CiliumEndpoint while the cache is away")
	allocated, err := wasp.Endpoint.GetSecurityIdentity()
	require.NoError(t, err)
	_, err = r.identity(allocated.ID)
	require.NoError(t, err)
	require.NotNil(t, r.agent.Identities.LookupIdentityByID(t.Context(), allocated.ID))
	again, isNew, err := r.agent.Identities.AllocateIdentity(t.Context(), allocated.Labels, false, identity.InvalidIdentity)
	require.NoError(t, err)
	require.False(t, isNew)
	require.Equal(t, allocated.ID, again.ID)
	// Upstream's controller patches an endpoint whose status isn't what it says of it: one
	// that was created before it was ready, and, again and again, one that is not-ready in
	// turn, since its regenerations fail. Nothing else is written.
	r.eventually(func() bool { return r.endpoint(wasp).Status.DeepEqual(wasp.Endpoint.GetCiliumEndpointStatus()) },
		"the CiliumEndpoint doesn't say what the endpoint is")
	written := r.endpoint(wasp).ResourceVersion
	// It looks for the endpoint in the store once its grace of 10 s, which is also its
	// interval, is over.
	ran, failed := r.syncRuns(wasp)
	r.eventually(func() bool { runs, _ := r.syncRuns(wasp); return runs >= ran+3 }, "upstream's controller doesn't run")
	_, fails := r.syncRuns(wasp)
	require.Equal(t, failed, fails, "what the agent itself has written was taken for deleted")
	require.Equal(t, written, r.endpoint(wasp).ResourceVersion, "what hasn't changed was written again")
	require.False(t, r.inTable(wasp))
	r.cache.Heal()
	r.eventually(func() bool { return r.inTable(wasp) }, "what came while the cache was away isn't in the table")

	// One that somebody deletes while it is used here is made again under its number.
	used, err := bee.Endpoint.GetSecurityIdentity()
	require.NoError(t, err)
	deleted, err := r.identity(used.ID)
	require.NoError(t, err)
	require.NoError(t, r.server.Cilium.CiliumV2().CiliumIdentities().Delete(t.Context(), deleted.Name, metav1.DeleteOptions{}))
	r.eventually(func() bool {
		made, err := r.identity(used.ID)
		return err == nil && made.UID != deleted.UID
	}, "an identity that is used was deleted, and isn't made again")

	r.agent.Restart()
	require.NoError(t, r.agent.Identities.WaitForInitialGlobalIdentities(t.Context()))
	require.NotNil(t, r.agent.Identities.LookupIdentityByID(t.Context(), allocated.ID))
	r.eventually(func() bool { return maps.Equal(none, r.own()) }, "after a restart there are watches")
}
