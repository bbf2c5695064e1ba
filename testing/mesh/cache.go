// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/relay"
)

// Cache is one replica of "waggle incluster-cache", with an etcd of its own that is
// a new one after each start, behind an address that stays the same.
type Cache struct {
	hive   *Hive
	relay  *relay.Relay
	server *etcd.OwnServer // set by each start
}

// NewCache makes a replica of the cluster's cache that reads what the objects hold,
// to be started.
func (c *Cluster) NewCache(t testing.TB, objects *Objects, flags ...Flags) *Cache {
	t.Helper()
	return c.newCache(t, cell.Group(
		cell.Config(wire.DefaultClusterInfo),
		cell.Provide(func() wire.MCSAPIConfig { return wire.DefaultMCSAPIConfig }),
		cell.Provide(func() client.Clientset { return objects }),
		cells.InClusterCacheParts,
	), flags)
}

// NewCacheFrom makes one that reads an API server: the flags say which.
func (c *Cluster) NewCacheFrom(t testing.TB, flags ...Flags) *Cache {
	t.Helper()
	return c.newCache(t, cells.InClusterCache, flags)
}

func (c *Cluster) newCache(t testing.TB, parts cell.Cell, flags []Flags) *Cache {
	t.Helper()
	address, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(address.Close)
	cache := &Cache{relay: address}
	own := Flags{"listen-client-urls": "http://127.0.0.1:0"}
	cache.hive = NewHive(t, c.Flags(append([]Flags{own}, flags...)...), parts,
		cell.Invoke(func(server *etcd.OwnServer) { cache.server = server }))
	return cache
}

// Address is the replica's, as host:port.
func (c *Cache) Address() string { return c.relay.Address() }

// URL is the same for a client.
func (c *Cache) URL() string { return "http://" + c.Address() }

// Start starts the replica with an empty etcd, which is reached at once.
func (c *Cache) Start() {
	c.hive.t.Helper()
	c.hive.Start()
	c.Heal()
}

// Kill ends the replica. Who reads it sees its connection break, with no more of it
// before.
func (c *Cache) Kill() {
	c.hive.t.Helper()
	c.Cut()
	c.hive.Stop()
}

// Cut breaks all connections and refuses new ones, while the replica runs on.
func (c *Cache) Cut() { c.relay.Aim("") }

// Heal undoes Cut.
func (c *Cache) Heal() {
	_, address, _ := strings.Cut(c.server.URL(), "://")
	c.relay.Aim(address)
}

// Lead has the replica's address lead to another replica, as when an address is given
// to another pod.
func (c *Cache) Lead(other *Cache) { c.relay.Aim(other.Address()) }

// dial connects to a replica of the cache.
func (a *Agent) dial(ctx context.Context, address string) (net.Conn, error) {
	if replica, ok := a.Backends[address]; ok {
		address = replica.Address()
	}
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// NewLocalAgent makes an agent of the cluster that reads its own cluster's state from
// the replicas of its cache, and remote clusters from the directory if there is one.
// The flags may name other places. Its node decides which replica it prefers.
func (c *Cluster) NewLocalAgent(t testing.TB, node string, remotes *Directory, replicas []*Cache, flags ...Flags) *Agent {
	t.Helper()
	own := Flags{
		"datastore": inclustercache.DatastoreEtcd, "state-dir": t.TempDir(),
		"incluster-cache-relist-jitter": "10ms", "ipcache-backend": ipcache.BackendMemory,
	}
	var addresses []string
	for _, replica := range replicas {
		addresses = append(addresses, replica.URL())
	}
	if len(addresses) > 0 {
		// As one configuration file: a flag of pairs has no room for a list.
		own["kvstore-opt"] = etcd.OptConfig + "=" + writeEtcdConfig(t, addresses)
	}
	if remotes != nil {
		own["clustermesh-config"] = remotes.Path
	}
	a := &Agent{Backends: map[string]*Cache{}}
	a.Hive = NewHive(t, c.Flags(append([]Flags{own}, flags...)...), cells.Agent,
		cell.Provide(
			func() inclustercache.NodeName { return inclustercache.NodeName(node) },
			func() inclustercache.Dialer { return a.dial },
		),
		cell.Invoke(a.use))
	return a
}
