// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	// longDead is several times leaseTTL.
	leaseTTL, longDead = time.Second, 4
	externalKeptNode   = "cilium/state/nodes/v1/default/stays"
	externalGoneNode   = "cilium/state/nodes/v1/default/goes"
)

// TestExternalEtcdOutlivesCache: an etcd that is there while its cache isn't has
// everything, however long that takes, so that no agent loses anything; and the next
// cache takes away what has gone meanwhile.
func TestExternalEtcdOutlivesCache(t *testing.T) {
	etcd, objects := mesh.StartEtcd(t), mesh.NewObjects(t)
	cluster := &mesh.Cluster{Name: "default"}
	newCache := func(more mesh.Flags) *mesh.Hive {
		return mesh.NewHive(t, cluster.Flags(mesh.Flags{
			"kvstore-opt": "etcd.address=" + etcd.URL(), "kvstore-lease-ttl": leaseTTL.String(),
		}, more), cell.Group(
			cell.Config(wire.DefaultClusterInfo),
			cell.Provide(func() wire.MCSAPIConfig { return wire.DefaultMCSAPIConfig }),
			cell.Provide(func() client.Clientset { return objects }),
			cells.InClusterCacheParts,
		))
	}
	nodes := objects.CiliumV2().CiliumNodes()
	for _, name := range []string{"stays", "goes"} {
		_, err := nodes.Create(t.Context(), &ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	list := func(c require.TestingT) map[string]string {
		content, err := etcd.List(t.Context(), "cilium/")
		require.NoError(c, err)
		return content
	}
	complete := func(resources ...wire.Resource) (keys []string) {
		for _, resource := range resources {
			keys = append(keys, wire.CanaryKey(resource, cluster.Name, false))
		}
		return append(keys, wire.HeartbeatKey, wire.CacheConfigKey(cluster.Name), externalKeptNode)
	}

	// What an earlier version has left on a lease comes off it.
	kv := etcd.Client().Etcd()
	claimed, err := wire.MarshalCacheConfig(wire.CacheConfig{Resources: wire.CacheResources})
	require.NoError(t, err)
	lease, err := kv.Grant(t.Context(), int64(longDead*leaseTTL/time.Second))
	require.NoError(t, err)
	for key, value := range map[string]string{
		wire.CacheConfigKey(cluster.Name): string(claimed), externalKeptNode: "{}",
		wire.CanaryKey(wire.Nodes, cluster.Name, false): "before",
	} {
		_, err = kv.Put(t.Context(), key, value, clientv3.WithLease(lease.ID))
		require.NoError(t, err)
	}
	cache := newCache(nil)
	cache.Start()
	everything := append(complete(wire.CacheResources...), externalGoneNode)
	slices.Sort(everything)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, everything, slices.Sorted(maps.Keys(list(c))))
		resp, err := kv.Get(t.Context(), "cilium/", clientv3.WithPrefix())
		require.NoError(c, err)
		for _, kv := range resp.Kvs {
			require.Zero(c, kv.Lease, "%s is on a lease", kv.Key)
		}
	}, time.Minute, 10*time.Millisecond)

	cache.Stop()
	before := list(t)
	require.NoError(t, nodes.Delete(t.Context(), "goes", metav1.DeleteOptions{}))
	// By etcd's own clock, a lease that is granted now ends after the cache's would.
	lease, err = kv.Grant(t.Context(), int64(longDead*leaseTTL/time.Second))
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		left, err := kv.TimeToLive(t.Context(), lease.ID)
		require.NoError(c, err)
		require.EqualValues(c, -1, left.TTL)
	}, time.Minute, 50*time.Millisecond)
	require.Equal(t, before, list(t))

	// The next one offers less.
	next := newCache(mesh.Flags{"incluster-cache-resources": "nodes,identities"})
	next.Start()
	want := complete(wire.Nodes, wire.Identities)
	slices.Sort(want)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		now := list(c)
		require.Equal(c, want, slices.Sorted(maps.Keys(now)))
		require.NotEqual(c, before[wire.CacheConfigKey(cluster.Name)], now[wire.CacheConfigKey(cluster.Name)])
		// It tells seconds, of which several have passed.
		require.NotEqual(c, before[wire.HeartbeatKey], now[wire.HeartbeatKey])
	}, time.Minute, 10*time.Millisecond)
}
