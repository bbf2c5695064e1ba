// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	patience = 30 * time.Second
	tick     = 5 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestContradictions: flags that contradict each other are refused with the reason,
// before anything is started.
func TestContradictions(t *testing.T) {
	for _, one := range []struct{ flags, reason string }{
		{"--datastore=consul", "must be kubernetes, etcd or none"},
		{"--datastore=etcd", "needs the address"},
		{"--datastore=etcd --kvstore-opt=etcd.qps=7", "needs the address"},
		{"--datastore=etcd --kvstore-opt=etcd.address=http://127.0.0.1:1 --k8s-manifests=/x", "there is one"},
		{"--kvstore-opt=etcd.address=http://127.0.0.1:1", "give --datastore=etcd"},
		{"--kvstore-opt=etcd.config=/x", "give --datastore=etcd"},
		{"--cluster-id=0 --clustermesh-config=/x", "--cluster-id=0"},
		{"--cluster-id=256", "must be between"},
		{"--cluster-id=7", "--cluster-name"},
		{"--incluster-cache-relist-jitter=-1s", "must not be negative"},
		{"--incluster-cache-rebalance-interval=-1s", "must not be negative"},
		{"--datastore=etcd --kvstore-opt=etcd.address=https://cache.kube-system", "etcd.address"},
	} {
		t.Run(one.flags, func(t *testing.T) {
			h := hive.New(cells.Agent)
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			h.RegisterFlags(flags)
			require.NoError(t, flags.Parse(append(strings.Fields(one.flags), "--enable-k8s=false", "--ipcache-backend=memory")))
			log := hivetest.Logger(t)
			require.ErrorContains(t, h.Start(log, context.Background()), one.reason)
			require.NoError(t, h.Stop(log, context.Background()))
		})
	}
}

// TestWithoutKubernetes: an agent that has no Kubernetes reads remote clusters alone,
// and says so.
func TestWithoutKubernetes(t *testing.T) {
	agent := (&mesh.Cluster{Name: "default"}).NewAgent(t, nil)
	agent.Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		row := datastore(c, agent)
		require.Equal(c, "kubernetes", row.Kind)
		require.False(c, row.Connected)
		require.Empty(c, row.LastError)
		require.Empty(c, row.Problem, "it was asked for nothing else")
		require.True(c, row.Off())
		done, _ := agent.Endpoints.Initialized(agent.DB.ReadTxn())
		require.True(c, done)
	}, patience, tick)
}

// TestReplicas has an agent follow its cache through the loss of replicas: what is
// known stays, and what changed meanwhile is there afterwards.
func TestReplicas(t *testing.T) {
	objects := mesh.NewObjects(t)
	cluster := &mesh.Cluster{Name: "default"}
	replicas := []*mesh.Cache{cluster.NewCache(t, objects), cluster.NewCache(t, objects)}
	agent := cluster.NewLocalAgent(t, "node-1", nil, replicas)
	create(t, objects, "web-0", "10.0.0.1")

	// The agent is there first.
	agent.Start()
	requireAway(t, agent, "No cache")
	initialized, _ := agent.Endpoints.Initialized(agent.DB.ReadTxn())
	require.False(t, initialized)
	for _, replica := range replicas {
		replica.Start()
	}
	arrives(t, agent, "10.0.0.1")
	follower := agent.Follow(t)
	revisions := agent.Revisions()

	// The one that it reads goes, then the other.
	first := reads(t, agent, replicas)
	replicas[first].Kill()
	create(t, objects, "web-1", "10.0.0.2")
	arrives(t, agent, "10.0.0.2")
	second := reads(t, agent, replicas)
	require.NotEqual(t, first, second)
	replicas[second].Kill()
	requireAway(t, agent, "Away from the cache since ")
	create(t, objects, "web-2", "10.0.0.3")

	// Another etcd is back.
	replicas[first].Start()
	arrives(t, agent, "10.0.0.3")
	require.Empty(t, follower.Gone())
	now := agent.Revisions()
	for row, revision := range revisions {
		require.Equal(t, revision, now[row], row)
	}
	// What went while nobody looked goes.
	replicas[first].Kill()
	requireAway(t, agent, "Away from the cache since ")
	require.NoError(t, objects.CiliumV2().CiliumEndpoints("shop").Delete(t.Context(), "web-0", metav1.DeleteOptions{}))
	replicas[first].Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, []string{"endpoints 10.0.0.1/32"}, follower.Gone())
	}, patience, tick)
}

// TestPreferredReplica: an agent whose preferred replica is started later moves to it
// once it has everything, and nothing of what is known is touched.
func TestPreferredReplica(t *testing.T) {
	objects := mesh.NewObjects(t)
	cluster := &mesh.Cluster{Name: "default"}
	late, there := cluster.NewCache(t, objects), cluster.NewCache(t, objects)
	agent := cluster.NewLocalAgent(t, inclustercache.Preferring(late.Address(), there.Address()), nil,
		[]*mesh.Cache{late, there}, mesh.Flags{"incluster-cache-rebalance-interval": "20ms"})
	create(t, objects, "web-0", "10.0.0.1")
	there.Start()
	agent.Start()
	arrives(t, agent, "10.0.0.1")
	require.Equal(t, there.Address(), datastore(t, agent).Backend)
	follower, revisions := agent.Follow(t), agent.Revisions()

	late.Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		row := datastore(c, agent)
		require.True(c, row.Connected)
		require.Equal(c, late.Address(), row.Backend)
	}, patience, tick)
	create(t, objects, "web-1", "10.0.0.2")
	arrives(t, agent, "10.0.0.2")
	require.Empty(t, follower.Gone())
	now := agent.Revisions()
	for row, revision := range revisions {
		require.Equal(t, revision, now[row], row)
	}
	require.Zero(t, datastore(t, agent).Failures)

	// When that one dies, the other is read again.
	late.Kill()
	create(t, objects, "web-2", "10.0.0.3")
	arrives(t, agent, "10.0.0.3")
	require.Equal(t, there.Address(), datastore(t, agent).Backend)
	require.Empty(t, follower.Gone())
}

// TestOtherCluster: the cache of another cluster, or of another ID, is refused with
// the reason wherever it comes from, and what is known stays.
func TestOtherCluster(t *testing.T) {
	objects, others := mesh.NewObjects(t), mesh.NewObjects(t)
	cluster := &mesh.Cluster{Name: "home"}
	cache := cluster.NewCache(t, objects)
	agent := cluster.NewLocalAgent(t, "node-1", nil, []*mesh.Cache{cache})
	create(t, objects, "web-0", "10.0.0.1")
	cache.Start()
	agent.Start()
	arrives(t, agent, "10.0.0.1")
	follower := agent.Follow(t)

	create(t, others, "evil-0", "10.0.0.66")
	for reason, other := range map[string]*mesh.Cluster{
		`the cache of cluster ["other"]`: {Name: "other"},
		"a cluster with ID 7":            {Name: "home", ID: 7},
	} {
		wrong := other.NewCache(t, others)
		wrong.Start()
		cache.Lead(wrong)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			require.Contains(c, datastore(c, agent).LastError, reason)
		}, patience, tick)
		wrong.Kill()
	}
	require.Empty(t, follower.Gone())
	require.Zero(t, agent.Endpoints.NumObjects(agent.DB.ReadTxn())-1)
	cache.Heal()
	create(t, objects, "web-1", "10.0.0.2")
	arrives(t, agent, "10.0.0.2")
	_, _, found := agent.Endpoints.Get(agent.DB.ReadTxn(), state.EndpointByPrefix(netip.MustParsePrefix("10.0.0.66/32")))
	require.False(t, found)
}

// datastore is the row of an agent that has one.
func datastore(t require.TestingT, agent *mesh.Agent) *state.Datastore {
	row, _, found := agent.Datastore.Get(agent.DB.ReadTxn(), state.TheDatastore())
	require.True(t, found)
	return row
}

// requireAway waits until the agent knows that nothing is read.
func requireAway(t *testing.T, agent *mesh.Agent, health string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		row := datastore(c, agent)
		require.False(c, row.Connected)
		require.NotEmpty(c, row.LastError)
		require.Empty(c, row.Backend)
		require.Contains(c, agent.Health("follow-cache"), health)
	}, patience, tick)
}

// reads is the replica that the agent reads.
func reads(t *testing.T, agent *mesh.Agent, replicas []*mesh.Cache) (index int) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		row := datastore(c, agent)
		require.True(c, row.Connected)
		for i, replica := range replicas {
			if replica.Address() == row.Backend {
				index = i
			}
		}
	}, patience, tick)
	return index
}

// create adds a pod, with its identity if there is none.
func create(t *testing.T, objects *mesh.Objects, name, address string) {
	t.Helper()
	ctx := t.Context()
	if _, err := objects.CiliumV2().CiliumIdentities().Get(ctx, "4711", metav1.GetOptions{}); err != nil {
		_, err = objects.CiliumV2().CiliumIdentities().Create(ctx, &ciliumv2.CiliumIdentity{
			ObjectMeta:     metav1.ObjectMeta{Name: "4711"},
			SecurityLabels: map[string]string{"k8s:app": "web", "k8s:" + wire.LabelCluster: "default"},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	_, err := objects.CiliumV2().CiliumEndpoints("shop").Create(ctx, &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: 4711},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: address}}, NodeIP: "172.18.0.2",
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
		require.Contains(c, entry.Value.String(), "identity=4711 ")
	}, patience, tick)
}
