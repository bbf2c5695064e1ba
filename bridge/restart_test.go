// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package bridge_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/ipcache"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/host/agent"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	// remotePods are of the remote cluster, localPods of this one, on other nodes than
	// the agent's.
	remotePods, localPods = 20_000, 500
	// identitiesOfEach are the identities of each cluster, and firstIdentity is the first
	// one without the cluster's bits.
	identitiesOfEach, firstIdentity = 20, 1000
)

// entries are what a map has of pods, or is to have.
type entries map[netip.Addr]hostagent.Entry

// crowd are the pods of a cluster, which come, change and go in numbers.
type crowd struct {
	*mesh.Cluster
	// network is where nothing else has addresses.
	network netip.Prefix
	// put makes a CiliumEndpoint, or changes it, and take deletes it.
	put, take func(t *testing.T, e wire.Endpoint)

	pods map[int]wire.Endpoint
	next int
}

// add has so many pods come.
func (c *crowd) add(t *testing.T, count int) {
	t.Helper()
	base := c.network.Addr().As4()
	for range count {
		n := c.next
		c.next++
		c.pods[n] = wire.Endpoint{
			Prefix:   netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte(n >> 8), byte(n)}), 32),
			Identity: c.identity(n), HostIP: c.host(n), Namespace: namespace, Pod: "pod-" + strconv.Itoa(n),
		}
		c.put(t, c.pods[n])
	}
}

func (c *crowd) identity(n int) uint32 {
	return c.ID<<16 + firstIdentity + uint32(n%identitiesOfEach)
}

func (c *crowd) host(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 18, byte(c.ID), byte(2 + n%100)})
}

// change has of ten pods one go, one get another identity, one another node, and one leave
// its address to another pod; and half as many come as have gone.
func (c *crowd) change(t *testing.T) {
	t.Helper()
	gone := 0
	for n, e := range c.pods {
		// Those of an identity are in all of the ten.
		switch (n + n/identitiesOfEach) % 10 {
		case 0:
			c.take(t, e)
			delete(c.pods, n)
			gone++
			continue
		case 1:
			e.Identity = c.identity(int(e.Identity) + 1)
			c.put(t, e)
		case 2:
			e.HostIP = c.host(int(e.HostIP.As4()[3]))
			c.put(t, e)
		case 3:
			c.take(t, e)
			e.Pod += "-next"
			e.Identity = c.identity(int(e.Identity) + 1)
			c.put(t, e)
		}
		c.pods[n] = e
	}
	c.add(t, gone/2)
}

// in has the entries of a map that are of pods of the cluster.
func (c *crowd) in(all entries) entries {
	of := maps.Clone(all)
	maps.DeleteFunc(of, func(address netip.Addr, _ hostagent.Entry) bool { return !c.network.Contains(address) })
	return of
}

func (c *crowd) entries() entries {
	all := entries{}
	for _, e := range c.pods {
		all[e.Prefix.Addr()] = hostagent.Entry{Identity: e.Identity, Tunnel: e.HostIP}
	}
	return all
}

// awaitEtcd waits until an etcd has just these pods of the cluster.
func (c *crowd) awaitEtcd(t *testing.T, from *clientv3.Client) {
	t.Helper()
	prefix, want := wire.StatePrefix(wire.Endpoints, c.Name), c.entries()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		answer, err := from.Get(t.Context(), prefix, clientv3.WithPrefix())
		require.NoError(collect, err)
		got := entries{}
		for _, kv := range answer.Kvs {
			e, err := wire.DecodeEndpoint(string(kv.Key[len(prefix):]), kv.Value, nil)
			require.NoError(collect, err)
			got[e.Prefix.Addr()] = hostagent.Entry{Identity: e.Identity, Tunnel: e.HostIP}
		}
		requireSame(collect, want, got, "the etcd with "+c.Name)
	}, patience, 20*tick)
}

// requireSame compares what is too much to be printed.
func requireSame(t require.TestingT, want, got entries, where string) {
	count, some := 0, []string(nil)
	note := func(format string, args ...any) {
		if count++; count <= 10 {
			some = append(some, fmt.Sprintf(format, args...))
		}
	}
	for address, entry := range want {
		if of, ok := got[address]; !ok {
			note("%s is missing", address)
		} else if of != entry {
			note("%s is %v instead of %v", address, of, entry)
		}
	}
	for address, entry := range got {
		if _, ok := want[address]; !ok {
			note("%s is %v instead of nothing", address, entry)
		}
	}
	require.Zero(t, count, "%s: of %d pods, %q", where, len(want), some)
}

// newRemoteCrowd has the pods of a remote cluster, which has an exporter.
func newRemoteCrowd(t *testing.T) *crowd {
	t.Helper()
	north := newCluster(t, "north", 1)
	for n := range identitiesOfEach {
		north.identity(t, firstIdentity+uint32(n))
	}
	tracker := north.objects.CiliumFakeClientset.Tracker()
	c := &crowd{Cluster: north.Cluster, network: netip.MustParsePrefix("10.1.0.0/16"), pods: map[int]wire.Endpoint{}}
	c.put = func(t *testing.T, e wire.Endpoint) {
		t.Helper()
		object := north.endpoint(e.Pod, e.Prefix.Addr().String(), 0)
		object.Status.Identity.ID, object.Status.Networking.NodeIP = int64(e.Identity), e.HostIP.String()
		require.NoError(t, tracker.Add(object))
	}
	c.take = func(t *testing.T, e wire.Endpoint) {
		t.Helper()
		require.NoError(t, tracker.Delete(schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumendpoints"}, e.Namespace, e.Pod))
	}
	c.add(t, remotePods)
	north.NewExporter(t, north.objects).Start()
	return c
}

// newLocalCrowd has pods of the agent's own cluster, at its API server.
func newLocalCrowd(t *testing.T, server *kubeapi.Server) *crowd {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, server.CreateNamespace(ctx, namespace))
	c := &crowd{
		Cluster: &mesh.Cluster{Name: "west", ID: 3}, network: netip.MustParsePrefix("10.3.0.0/16"),
		pods: map[int]wire.Endpoint{},
	}
	for n := range identitiesOfEach {
		require.NoError(t, server.CreateIdentity(ctx, strconv.FormatUint(uint64(c.identity(firstIdentity+n)), 10), map[string]string{
			"k8s:app": strconv.Itoa(n), "k8s:" + wire.LabelCluster: c.Name, "k8s:" + wire.LabelNamespace: namespace,
		}))
	}
	endpoints := server.Cilium.CiliumV2().CiliumEndpoints(namespace)
	c.put = func(t *testing.T, e wire.Endpoint) {
		t.Helper()
		err := server.CreateEndpoint(ctx, &e, nil)
		if !k8serrors.IsAlreadyExists(err) {
			require.NoError(t, err)
			return
		}
		object, err := endpoints.Get(ctx, e.Pod, metav1.GetOptions{})
		require.NoError(t, err)
		object.Status.Identity = &ciliumv2.EndpointIdentity{ID: int64(e.Identity)}
		object.Status.Networking.NodeIP = e.HostIP.String()
		_, err = endpoints.Update(ctx, object, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
	c.take = func(t *testing.T, e wire.Endpoint) {
		t.Helper()
		require.NoError(t, server.DeleteEndpoint(ctx, &e))
	}
	c.add(t, localPods)
	return c
}

// lookout looks for addresses in the map as packets would, over and over.
type lookout struct {
	want   atomic.Pointer[[]entries]
	rounds atomic.Int64
	mu     sync.Mutex
	wrong  []string
}

// look begins, until the test ends.
func look(t *testing.T, in *hostagent.Datapath, want entries) *lookout {
	t.Helper()
	l := &lookout{}
	l.expect(want)
	ctx, cancel := context.WithCancel(context.Background())
	var looking sync.WaitGroup
	looking.Go(func() {
		for ctx.Err() == nil {
			l.round(in, *l.want.Load())
			l.rounds.Add(1)
		}
	})
	t.Cleanup(func() { cancel(); looking.Wait() })
	return l
}

// expect has the addresses that are in all of these be there, as one of these says.
func (l *lookout) expect(want ...entries) { l.want.Store(&want) }

func (l *lookout) round(in *hostagent.Datapath, want []entries) {
next:
	for address := range want[0] {
		got, found, err := in.Lookup(address)
		for _, of := range want {
			entry, ok := of[address]
			if !ok || err == nil && found && got == entry {
				continue next
			}
		}
		l.mu.Lock()
		if len(l.wrong) < 10 {
			l.wrong = append(l.wrong, fmt.Sprintf("%s: found %t, %v, error %v", address, found, got, err))
		}
		l.mu.Unlock()
	}
}

// await has all be looked for at least once more, and nothing was wrong by then.
func (l *lookout) await(t *testing.T) {
	t.Helper()
	begun := l.rounds.Load()
	require.Eventually(t, func() bool { return l.rounds.Load() >= begun+2 }, patience, tick)
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(t, l.wrong)
}

// dumped are entries of a crowd in upstream's ipcache.
type dumped struct {
	*crowd
	from  source.Source
	found entries
}

// OnIPIdentityCacheChange implements upstream's listener, for one dump.
func (d *dumped) OnIPIdentityCacheChange(_ ipcache.CacheModification, in cmtypes.PrefixCluster, _, host net.IP,
	_ *ipcache.Identity, now ipcache.Identity, _ uint8, _ *ipcache.K8sMetadata, _ uint8) {
	if address := in.AsPrefix().Addr(); d.network.Contains(address) && now.Source == d.from {
		node, _ := netip.AddrFromSlice(host)
		d.found[address] = hostagent.Entry{Identity: now.ID.Uint32(), Tunnel: node.Unmap()}
	}
}

// awaitIPCache waits until the agent's ipcache has just these pods of the cluster.
func (c *crowd) awaitIPCache(t *testing.T, a *hostagent.Agent, from source.Source) {
	t.Helper()
	want := c.entries()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		d := &dumped{c, from, entries{}}
		a.IPCache.DumpToListener(d)
		requireSame(collect, want, d.found, "the agent's ipcache with "+c.Name)
	}, patience, tick)
}

// TestRestart restarts an agent that has 20,000 endpoints of a remote cluster, and some of
// its own, while two in five of them change. What the programs of its node find is looked
// at all the time: no address that was there before and is there after is ever missing,
// nor is anything else than what was so or is so said of it. When the programs are given
// the new agent's map there is in it what etcd and Kubernetes have, no more and no less,
// be they away when the agent starts.
func TestRestart(t *testing.T) {
	server := kubeapi.Start(t)
	hostagent.AddNode(t, server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	remote, local := newRemoteCrowd(t), newLocalCrowd(t, server)
	cache := local.NewCacheFrom(t, mesh.Flags{"k8s-kubeconfig-path": server.Kubeconfig})
	cache.Start()
	ofCache, err := etcd.NewClient(mesh.Log(t), etcd.ClientConfig{Endpoints: []string{cache.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, ofCache.Close()) })
	directory := mesh.NewDirectory(t).Add(remote.Name, remote.Etcd)
	// all are the entries of all pods, once they are where the agent reads them.
	all := func(t *testing.T) entries {
		t.Helper()
		remote.awaitEtcd(t, remote.Etcd.Client().Etcd())
		local.awaitEtcd(t, ofCache.Etcd())
		all := remote.entries()
		maps.Copy(all, local.entries())
		return all
	}
	pods := func(content map[netip.Prefix]hostagent.Entry) entries {
		all := entries{}
		for prefix, entry := range content {
			all[prefix.Addr()] = entry
		}
		pods := remote.in(all)
		maps.Copy(pods, local.in(all))
		return pods
	}

	for _, datastore := range []string{inclustercache.DatastoreEtcd, inclustercache.DatastoreKubernetes} {
		t.Run(datastore, func(t *testing.T) {
			flags := mesh.Flags{
				"cluster-name": local.Name, "cluster-id": strconv.Itoa(int(local.ID)), "datastore": datastore,
				"clustermesh-config": directory.Path, "clustermesh-ingest": "waggle",
				// After it the fence lifts without the remote cluster.
				"clustermesh-sync-timeout": patience.String(),
			}
			if datastore == inclustercache.DatastoreEtcd {
				flags["kvstore-opt"], flags["incluster-cache-relist-jitter"] = "etcd.address="+cache.URL(), "10ms"
			}
			datapath := hostagent.NewDatapath(t)
			a := hostagent.New(t, hostagent.Config{
				Server: server, Node: "one", Flags: flags, Cells: []cell.Cell{agent.Cells, datapath.Cell()},
			})
			before := all(t)
			a.Start()
			requireSame(t, before, pods(datapath.Replaced()), "the first map")

			out := look(t, datapath, before)
			out.await(t)
			a.Stop()
			out.await(t)
			if datastore == inclustercache.DatastoreEtcd {
				// So the next start begins with what isn't so any more.
				left, err := filepath.Glob(filepath.Join(a.StateDir(), "waggle", "*"))
				require.NoError(t, err)
				require.NotEmpty(t, left)
			}
			remote.change(t)
			local.change(t)
			after := all(t)
			out.expect(before, after)

			// What the agent is to read comes late, one after the other.
			remote.Etcd.Stop()
			cache.Cut()
			a.Start()
			out.await(t)
			remote.Etcd.Start()
			remote.awaitIPCache(t, a, source.ClusterMesh)
			cache.Heal()
			requireSame(t, after, pods(datapath.Replaced()), "the map when it is given to programs")
			out.expect(after)
			out.await(t)

			// And it remains so.
			remote.awaitIPCache(t, a, source.ClusterMesh)
			local.awaitIPCache(t, a, source.CustomResource)
			content, err := datapath.Content()
			require.NoError(t, err)
			requireSame(t, after, pods(content), "the map")
			for _, prefix := range datapath.Deleted() {
				require.NotContains(t, after, prefix.Addr(), "it was deleted under the eyes of programs")
			}
			out.await(t)
		})
	}
}
