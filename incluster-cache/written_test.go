// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// written is a replica of the cache, with what a test writes.
type written struct {
	client       *clientv3.Client
	url, address string
}

func newWritten(t *testing.T, options ...grpc.ServerOption) written {
	t.Helper()
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0", GRPC: options})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return written{client: client.Etcd(), url: server.URL(), address: addressOf(server.URL())}
}

// announce writes what the cache says of itself.
func (w written) announce(t *testing.T, resources []wire.Resource) {
	t.Helper()
	config, err := wire.MarshalCacheConfig(wire.CacheConfig{Resources: resources})
	require.NoError(t, err)
	w.put(t, wire.CacheConfigKey(ownCluster.Name), string(config))
}

// complete writes the canaries.
func (w written) complete(t *testing.T, resources []wire.Resource) {
	t.Helper()
	for _, r := range resources {
		w.put(t, wire.CanaryKey(r, ownCluster.Name, false), "2026-01-01T00:00:00Z")
	}
}

// fill writes an entry of each resource.
func (w written) fill(t *testing.T) {
	t.Helper()
	prefix := func(r wire.Resource) string { return wire.Prefix(r, ownCluster.Name, false) }
	w.put(t, prefix(wire.Identities)+wire.IdentityKey(4711), "k8s:app=web;k8s:"+wire.LabelCluster+"="+ownCluster.Name+";")
	node, err := wire.MarshalNode(&wire.Node{Cluster: ownCluster.Name, Name: "node-1"})
	require.NoError(t, err)
	w.put(t, prefix(wire.Nodes)+"node-1", string(node))
	w.endpoint(t, "10.0.0.1")
	w.service(t, "10.0.0.9:2379")
}

func (w written) endpoint(t *testing.T, address string) {
	t.Helper()
	ep := wire.Endpoint{Prefix: netip.PrefixFrom(netip.MustParseAddr(address), 32), Identity: 4711}
	value, err := wire.AppendEndpoint(nil, &ep)
	require.NoError(t, err)
	w.put(t, wire.Prefix(wire.Endpoints, ownCluster.Name, false)+wire.EndpointKey(ep.Prefix), string(value))
}

// service writes the cache's own Service.
func (w written) service(t *testing.T, backends ...string) {
	t.Helper()
	w.put(t, wire.Prefix(wire.Services, ownCluster.Name, false)+wire.ServiceKey("kube-system", "cache"), ownService(t, backends...))
}

func ownService(t *testing.T, backends ...string) string {
	t.Helper()
	row := &wire.Service{Cluster: ownCluster.Name, Namespace: "kube-system", Name: "cache"}
	row.Backends = backendsOf("etcd", backends)
	value, err := wire.MarshalService(row)
	require.NoError(t, err)
	return string(value)
}

func (w written) put(t *testing.T, key, value string) {
	t.Helper()
	_, err := w.client.Put(t.Context(), key, value)
	require.NoError(t, err)
}

// start runs a follower until stop is called, or the test ends.
func start(t *testing.T, f *follower, health cell.Health) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.run(ctx, health); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// dials counts the connections to each address, and refuses those that are shut.
type dials struct {
	mu     sync.Mutex
	counts map[string]int
	shut   map[string]bool
}

func (d *dials) dial(ctx context.Context, address string) (net.Conn, error) {
	d.mu.Lock()
	if d.counts == nil {
		d.counts = map[string]int{}
	}
	d.counts[address]++
	shut := d.shut[address]
	d.mu.Unlock()
	if shut {
		return nil, errors.New("shut")
	}
	return dialAddress(ctx, address)
}

func (d *dials) to(address string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[address]
}

func (d *dials) open(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shut, address)
}

// newFollowerOf makes a follower of replicas at these addresses, with tables of its
// own, and what reads its row.
func newFollowerOf(t *testing.T, node string, urls ...string) (*follower, func() *state.Datastore) {
	t.Helper()
	log, db := slog.New(slog.DiscardHandler), statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	f := &follower{
		log: log, cluster: ownCluster, node: node, dial: dialAddress, filling: newFilling,
		source: newSource(log, writer, ownCluster, time.Now()),
		local: ingest.NewLocal(ingest.Options{
			Log: log, Writer: writer, Local: ownCluster, RelistJitter: 10 * time.Millisecond,
		}),
		directory: &directory{log: log, cluster: ownCluster, backoff: newAskBackoff(),
			etcd: etcd.ClientConfig{Endpoints: urls}, db: db, services: writer.Tables().Services},
	}
	return f, func() *state.Datastore {
		row, _, _ := writer.Tables().Datastore.Get(db.ReadTxn(), state.TheDatastore())
		return row
	}
}
