// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/identity"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/statedb"
	testassert "github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// patience is how long a condition may take; it only matters for failures.
	patience = time.Minute
	tick     = 2 * time.Millisecond
)

// assert is what the checks of a condition report to.
type assert = testassert.CollectT

var exportTime = metav1.NewTime(time.Unix(1700000000, 0))

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Started by the init functions of packages that etcd and upstream import.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

const (
	// The remote cluster of the tests, and two of its identities: cluster 3 of
	// 255 has the numbers from 3<<16.
	peer          = "peer"
	peerID        = 3
	webID  uint32 = 3<<16 + 10
	dbID   uint32 = 3<<16 + 11
)

func webLabels(cluster string) string {
	return "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=" + cluster + ";k8s:io.kubernetes.pod.namespace=shop;"
}

// fixture is one remote cluster's etcd, a Handler that reads it, and its tables.
type fixture struct {
	*testing.T
	server  *etcd.Server
	address *address
	// All there were: a server that still has clients takes seconds to close.
	clients []*etcd.Client
	servers []*etcd.Server
	client  *etcd.Client
	config  wire.ClusterConfig
	writer  *state.Writer
	db      *statedb.DB
	tables  state.Tables
	handler *handler
}

// setup makes a fixture whose cluster has the state layout without canaries.
// Endpoints wait for identities for ever unless adjust says otherwise.
func setup(t *testing.T, adjust ...func(*Options)) *fixture {
	f := &fixture{T: t, db: statedb.New(), address: &address{}, config: wire.ClusterConfig{ID: peerID}}
	var err error
	f.writer, err = state.NewWriter(f.db)
	require.NoError(t, err)
	f.tables = f.writer.Tables()
	t.Cleanup(f.close)
	f.swap("")

	options := Options{
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
		Writer:       f.writer,
		Local:        wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255},
		HoldTimeout:  time.Hour,
		RelistJitter: -1,

		statusInterval: time.Millisecond,
	}
	for _, fn := range adjust {
		fn(&options)
	}
	f.handler = NewFactory(options)(peer).(*handler)
	return f
}

// swap puts another, empty etcd in the place of the one there is, with a client
// of its own. With a token, it can't be told from another one with that token by
// its cluster ID.
func (f *fixture) swap(token string) {
	f.serve(token)
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{
		Endpoints: []string{f.server.URL()}, Dial: f.address.dial})
	require.NoError(f, err)
	f.clients = append(f.clients, client)
	f.client = client
}

// replace puts another, empty etcd behind the address that the client knows, and
// breaks its connections.
func (f *fixture) replace(token string) {
	f.serve(token)
	f.address.breakAll()
	_, err := f.client.WaitReady(f.Context(), "x", func(error) {})
	require.NoError(f, err)
}

func (f *fixture) close() {
	for _, client := range f.clients {
		require.NoError(f, client.Close())
	}
	for _, server := range f.servers {
		server.Close()
	}
}

func (f *fixture) serve(token string) {
	server, err := etcd.StartServer(f.Context(), etcd.ServerConfig{
		Dir: f.TempDir(), ListenURL: "http://127.0.0.1:0", Token: token})
	require.NoError(f, err)
	f.servers = append(f.servers, server)
	f.server = server
	f.address.set(strings.TrimPrefix(server.URL(), "http://"))
}

// address is a name that can come to mean another server.
type address struct {
	mu    sync.Mutex
	now   string
	conns []net.Conn
}

func (a *address) set(now string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = now
}

func (a *address) dial(ctx context.Context, _ string) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", a.now)
	if err == nil {
		a.conns = append(a.conns, conn)
	}
	return conn, err
}

func (a *address) breakAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, conn := range a.conns {
		conn.Close()
	}
	a.conns = nil
}

// run runs the Handler until stop is called or the test ends.
func (f *fixture) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	conn := f.connection()
	go func() { done <- f.handler.Run(ctx, conn) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(f, <-done)
		}
	}
	f.Cleanup(stop)
	return stop
}

func (f *fixture) connection() remote.Connection {
	return remote.Connection{Cluster: peer, Client: f.client, Config: f.config}
}

// put writes keys and values, in pairs, in one commit; an empty value deletes.
func (f *fixture) put(pairs ...string) {
	f.Helper()
	var ops []clientv3.Op
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			ops = append(ops, clientv3.OpDelete(pairs[i]))
		} else {
			ops = append(ops, clientv3.OpPut(pairs[i], pairs[i+1]))
		}
	}
	_, err := f.client.Etcd().Txn(f.Context()).Then(ops...).Commit()
	require.NoError(f, err)
}

// key is the key of an object in the layout that the fixture's config says.
func (f *fixture) key(resource wire.Resource, key string) string {
	return wire.Prefix(resource, peer, f.config.Capabilities.Cached) + key
}

func (f *fixture) endpointAt(address string, id uint32, pod string) (key, value string) {
	return f.key(wire.Endpoints, address), endpointValue(f, address, id, pod)
}

func (f *fixture) identityAt(id uint32, labels string) (key, value string) {
	return f.key(wire.Identities, fmt.Sprint(id)), labels
}

func (f *fixture) nodeAt(name, cluster string, clusterID uint32) (key, value string) {
	node := nodetypes.Node{Name: name, Cluster: cluster, ClusterID: clusterID,
		IPAddresses: []nodetypes.Address{{Type: "InternalIP", IP: net.ParseIP("192.168.3.1")}}}
	raw, err := node.Marshal()
	require.NoError(f, err)
	return f.key(wire.Nodes, name), string(raw)
}

func (f *fixture) serviceAt(name, cluster string, clusterID uint32) (key, value string) {
	raw, err := wire.MarshalService(&wire.Service{Cluster: cluster, ClusterID: clusterID,
		Namespace: "shop", Name: name, Shared: true})
	require.NoError(f, err)
	return f.key(wire.Services, "shop/"+name), string(raw)
}

func (f *fixture) exportAt(name, cluster string) (key, value string) {
	raw, err := wire.MarshalServiceExport(&wire.ServiceExport{Cluster: cluster, Namespace: "shop", Name: name,
		Type: "ClusterSetIP", SessionAffinity: "None", ExportCreationTimestamp: exportTime})
	require.NoError(f, err)
	return f.key(wire.ServiceExports, "shop/"+name), string(raw)
}

func endpointValue(t require.TestingT, address string, id uint32, pod string) string {
	pair := identity.IPIdentityPair{IP: net.ParseIP(address), HostIP: net.ParseIP("192.168.3.1"),
		ID: identity.NumericIdentity(id), K8sNamespace: "shop", K8sPodName: pod}
	raw, err := pair.Marshal()
	require.NoError(t, err)
	return string(raw)
}

// content is what the tables hold, each row as one line.
func (f *fixture) content() map[string]string {
	txn := f.db.ReadTxn()
	rows := map[string]string{}
	for ep := range f.tables.Endpoints.All(txn) {
		rows["endpoint "+ep.Prefix().Addr().String()] = fmt.Sprint(ep.Identity(), " ", ep.Pod(), " ", ep.Origin().Cluster)
	}
	for id := range f.tables.Identities.All(txn) {
		rows[fmt.Sprint("identity ", id.ID)] = id.Labels
	}
	for node := range f.tables.Nodes.All(txn) {
		rows["node "+node.Cluster+"/"+node.Name] = fmt.Sprint(node.Source, " ", node.Addresses)
	}
	for service := range f.tables.Services.All(txn) {
		rows["service "+service.Cluster+"/"+service.Namespace+"/"+service.Name] = fmt.Sprint(service.Shared)
	}
	for export := range f.tables.ServiceExports.All(txn) {
		rows["export "+export.Cluster+"/"+export.Namespace+"/"+export.Name] = string(export.Type)
	}
	return rows
}

// wants waits until the tables hold just these rows.
func (f *fixture) wants(rows map[string]string) {
	f.Helper()
	require.EventuallyWithT(f, func(c *assert) { require.Equal(c, rows, f.content()) }, patience, tick)
}

// row is the cluster's row in remote-clusters; a zero row if there is none.
func (f *fixture) row() state.RemoteCluster {
	row, _, found := f.tables.RemoteClusters.Get(f.db.ReadTxn(), state.RemoteClusterByName(peer))
	if !found {
		return state.RemoteCluster{}
	}
	return *row
}

// wantsRow waits until the cluster's row is as check requires.
func (f *fixture) wantsRow(check func(c *assert, row state.RemoteCluster)) {
	f.Helper()
	require.EventuallyWithT(f, func(c *assert) { check(c, f.row()) }, patience, tick)
}

// ready waits until the cluster is ready.
func (f *fixture) ready() {
	f.Helper()
	f.wantsRow(func(c *assert, row state.RemoteCluster) { require.True(c, row.Ready) })
}
