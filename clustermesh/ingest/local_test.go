// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	testassert "github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ownCluster is in no mesh.
var ownCluster = wire.ClusterInfo{Name: "default", MaxConnectedClusters: 255}

// localManifests hold what Kubernetes may hold, the odd included: an endpoint
// without identity, one of the host's, an identity of a former cluster ID, addresses
// of both families, all fields of nodes, headless and local services.
const localManifests = `
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: "4711"}
security-labels: {"k8s:app": web, "k8s:io.cilium.k8s.policy.cluster": default, "k8s:io.kubernetes.pod.namespace": shop}
---
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: "131173"}
security-labels: {"k8s:app": old, "k8s:io.cilium.k8s.policy.cluster": former, "k8s:io.kubernetes.pod.namespace": shop}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: web-0, namespace: shop}
status:
  identity: {id: 4711}
  encryption: {key: 3}
  service-account: web
  named-ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
  networking: {addressing: [{ipv4: 10.0.0.1, ipv6: "fd00::1"}], node: 172.18.0.2}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: old-0, namespace: shop}
status:
  identity: {id: 131173}
  networking: {addressing: [{ipv4: 10.0.0.2}], node: "fc00::2"}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: starting, namespace: shop}
status:
  networking: {addressing: [{ipv4: 10.0.0.3}], node: 172.18.0.2}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: host, namespace: kube-system}
status:
  identity: {id: 1}
  networking: {addressing: [{ipv4: 10.0.0.4}]}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: odd, namespace: kube-system}
status:
  identity: {id: 4711}
  networking: {addressing: [{ipv4: 127.0.0.9}], node: 172.18.0.2}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata:
  name: node-1
  labels: {topology.kubernetes.io/zone: a}
  annotations: {network.cilium.io/wg-pub-key: "abc="}
spec:
  addresses:
  - {type: InternalIP, ip: 172.18.0.2}
  - {type: ExternalIP, ip: 203.0.113.2}
  - {type: InternalIP, ip: "fc00::2"}
  - {type: CiliumInternalIP, ip: 10.0.0.254}
  health: {ipv4: 10.0.0.250, ipv6: "fd00::fa"}
  ingress: {ipv4: 10.0.0.251}
  encryption: {key: 3}
  bootid: 6f2b8f06-0000-4000-8000-000000000001
  ipam: {podCIDRs: [10.0.0.0/24, 10.0.7.0/24, "fd00::/64"]}
---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: bare}
spec: {}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  annotations: {service.cilium.io/global: "true"}
  labels: {app: web}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:96::7"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.1], hostname: web-0, zone: a, hints: {forZones: [{name: a}]}, conditions: {ready: true}}
- {addresses: [10.0.0.9], conditions: {ready: false, serving: false}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: shop}
spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}
`

// TestLocalEqualsKubernetes fills tables from the same objects by both ways and
// compares each row.
func TestLocalEqualsKubernetes(t *testing.T) {
	fromKubernetes, db := readManifests(t, localManifests)
	f := newLocalFixture(t, ownCluster)
	f.export(fromKubernetes, db.ReadTxn())
	f.complete(wire.CacheResources...)
	f.run(wire.CacheResources...)
	<-f.local.Ready()

	txn, want := f.db.ReadTxn(), db.ReadTxn()
	endpoints := 0
	for row := range fromKubernetes.Endpoints.All(want) {
		got, _, found := f.tables.Endpoints.Get(txn, state.EndpointByPrefix(row.Prefix()))
		require.True(t, found, row.Prefix())
		require.Equal(t, row.Endpoint(), got.Endpoint())
		requireSameOrigin(t, row.Origin(), got.Origin())
		endpoints++
	}
	require.Equal(t, 6, endpoints)
	require.Equal(t, endpoints, f.tables.Endpoints.NumObjects(txn))
	requireSameRows(t, fromKubernetes.Identities, want, f.tables.Identities, txn, 2,
		func(i *state.Identity) (any, *state.Origin) { return i.Identity, i.Origin })
	requireSameRows(t, fromKubernetes.Nodes, want, f.tables.Nodes, txn, 2,
		func(n *state.Node) (any, *state.Origin) { return n.Node, n.Origin })
	requireSameRows(t, fromKubernetes.Services, want, f.tables.Services, txn, 3,
		func(s *state.Service) (any, *state.Origin) { return s.Service, s.Origin })
	require.Zero(t, f.tables.ServiceExports.NumObjects(txn))
}

// requireSameRows compares two tables in the order of their keys.
func requireSameRows[T any](t *testing.T, want statedb.Table[T], wantTxn statedb.ReadTxn,
	got statedb.Table[T], gotTxn statedb.ReadTxn, rows int, split func(T) (any, *state.Origin)) {
	t.Helper()
	wantRows, gotRows := statedb.Collect(want.All(wantTxn)), statedb.Collect(got.All(gotTxn))
	require.Len(t, wantRows, rows)
	require.Len(t, gotRows, rows)
	for i := range wantRows {
		wantRow, wantOrigin := split(wantRows[i])
		gotRow, gotOrigin := split(gotRows[i])
		require.Equal(t, wantRow, gotRow)
		requireSameOrigin(t, wantOrigin, gotOrigin)
	}
}

// requireSameOrigin compares what two Origins of two Writers say.
func requireSameOrigin(t *testing.T, want, got *state.Origin) {
	t.Helper()
	require.NotNil(t, got)
	require.Equal(t, *want, *got)
}

// TestLocalRefusesOnlyWhatCannotBeOurs: of this cluster nothing is doubted but what
// names another one, or can't be read.
func TestLocalRefusesOnlyWhatCannotBeOurs(t *testing.T) {
	f := newLocalFixture(t, ownCluster)
	mine, theirs := wire.Node{Name: "mine", Cluster: "default"}, wire.Node{Name: "theirs", Cluster: "other"}
	f.put(wire.StatePrefix(wire.Nodes, "default")+"mine", must(wire.MarshalNode(&mine)))
	f.put(wire.StatePrefix(wire.Nodes, "default")+"theirs", must(wire.MarshalNode(&theirs)))
	f.put(wire.StatePrefix(wire.Endpoints, "default")+"10.0.0.1", []byte("{"))
	f.complete(wire.CacheResources...)
	f.run(wire.CacheResources...)
	<-f.local.Ready()
	require.EventuallyWithT(t, func(c *assert) {
		row, _, found := f.tables.Datastore.Get(f.db.ReadTxn(), state.TheDatastore())
		require.True(c, found)
		require.Equal(c, map[wire.Reason]uint64{wire.ReasonForeignCluster: 1, wire.ReasonMalformed: 1}, row.Refused)
		require.True(c, row.Ready)
		require.Equal(c, 1, row.Resources[wire.Nodes].Entries)
	}, patience, tick)
	require.Zero(t, f.tables.RemoteClusters.NumObjects(f.db.ReadTxn()))
}

// TestLocalWaitsForAll: tables aren't initialized before the cache is complete, nor
// while an endpoint waits for its identity.
func TestLocalWaitsForAll(t *testing.T) {
	f := newLocalFixture(t, ownCluster)
	f.run(wire.CacheResources...)
	initialized := func() bool {
		done, _ := f.tables.Endpoints.Initialized(f.db.ReadTxn())
		return done
	}
	endpoint := wire.Endpoint{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: 4711}
	f.put(wire.StatePrefix(wire.Endpoints, "default")+"10.0.0.1", must(wire.MarshalEndpoint(&endpoint)))
	f.complete(wire.CacheResources...)
	require.EventuallyWithT(t, func(c *assert) {
		row, _, found := f.tables.Datastore.Get(f.db.ReadTxn(), state.TheDatastore())
		require.True(c, found)
		require.True(c, row.Ready)
		require.Equal(c, 1, row.HeldBack)
	}, patience, tick)
	require.False(t, initialized())
	f.put(wire.StatePrefix(wire.Identities, "default")+"4711", []byte("k8s:app=web;"))
	require.Eventually(t, initialized, patience, tick)
	require.Equal(t, 1, f.tables.Endpoints.NumObjects(f.db.ReadTxn()))
}

// TestLocalKeepsWhatIsKnown over a source that isn't complete, and takes away what
// one that is complete doesn't have.
func TestLocalKeepsWhatIsKnown(t *testing.T) {
	f := newLocalFixture(t, ownCluster)
	for _, id := range []string{"4711", "4712"} {
		f.put(wire.StatePrefix(wire.Identities, "default")+id, []byte("k8s:app="+id+";"))
	}
	f.complete(wire.CacheResources...)
	stop := f.run(wire.CacheResources...)
	<-f.local.Ready()
	stop()
	require.Equal(t, 2, f.tables.Identities.NumObjects(f.db.ReadTxn()))
	require.Empty(t, f.local.Lacks(wire.CacheResources))
	require.Equal(t, wire.Services, f.local.Lacks([]wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints}))

	f.serve()
	f.put(wire.StatePrefix(wire.Identities, "default")+"4713", []byte("k8s:app=new;"))
	f.run(wire.CacheResources...)
	require.Eventually(t, func() bool { return f.tables.Identities.NumObjects(f.db.ReadTxn()) == 3 }, patience, tick)
	f.complete(wire.CacheResources...)
	require.Eventually(t, func() bool { return f.tables.Identities.NumObjects(f.db.ReadTxn()) == 1 }, patience, tick)
}

// localFixture is the etcd of a cache, and a Local that reads it.
type localFixture struct {
	*testing.T
	client *etcd.Client
	db     *statedb.DB
	tables state.Tables
	local  *Local
}

func newLocalFixture(t *testing.T, cluster wire.ClusterInfo) *localFixture {
	f := &localFixture{T: t, db: statedb.New()}
	writer, err := state.NewWriter(f.db)
	require.NoError(t, err)
	f.tables = writer.Tables()
	f.local = NewLocal(Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Writer: writer, Local: cluster,
		HoldTimeout: time.Hour, RelistJitter: -1, statusInterval: time.Millisecond,
	})
	f.serve()
	return f
}

// serve begins with a new, empty etcd.
func (f *localFixture) serve() {
	server, err := etcd.StartServer(f.Context(), etcd.ServerConfig{Dir: f.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(f, err)
	f.Cleanup(server.Close)
	f.client, err = etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(f, err)
	client := f.client
	f.Cleanup(func() { require.NoError(f, client.Close()) })
}

func (f *localFixture) run(resources ...wire.Resource) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	client := f.client
	go func() { done <- f.local.Run(ctx, client, resources) }()
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

func (f *localFixture) put(key string, value []byte) {
	f.Helper()
	_, err := f.client.Etcd().Put(f.Context(), key, string(value))
	require.NoError(f, err)
}

// complete writes the canaries.
func (f *localFixture) complete(resources ...wire.Resource) {
	f.Helper()
	for _, r := range resources {
		f.put(wire.CanaryKey(r, "default", false), []byte("now"))
	}
}

// export writes local rows as a cache does.
func (f *localFixture) export(from state.Tables, txn statedb.ReadTxn) {
	f.Helper()
	for row := range from.Endpoints.All(txn) {
		endpoint := row.Endpoint()
		f.put(wire.StatePrefix(wire.Endpoints, "default")+wire.EndpointKey(row.Prefix()), must(wire.MarshalEndpoint(&endpoint)))
	}
	for row := range from.Identities.All(txn) {
		f.put(wire.StatePrefix(wire.Identities, "default")+wire.IdentityKey(row.ID), []byte(row.Labels))
	}
	for row := range from.Nodes.All(txn) {
		f.put(wire.StatePrefix(wire.Nodes, "default")+row.Name, must(wire.MarshalNode(&row.Node)))
	}
	for row := range from.Services.All(txn) {
		f.put(wire.StatePrefix(wire.Services, "default")+wire.ServiceKey(row.Namespace, row.Name), must(wire.MarshalService(row.Service)))
	}
}

func must(value []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return value
}

// readManifests gives the tables that cells/kubernetes makes, once they are full.
func readManifests(t *testing.T, manifests string) (tables state.Tables, db *statedb.DB) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(manifests), 0o600))
	h := hive.New(
		cell.Config(ownCluster), cell.Config(wire.DefaultMCSAPIConfig),
		kubernetes.ClientCell, state.Cell, kubernetes.Cell,
		cell.Invoke(func(writer *state.Writer, of *statedb.DB) { tables, db = writer.Tables(), of }),
	)
	h.Viper().Set("k8s-manifests", dir)
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, context.Background()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
	require.EventuallyWithT(t, func(c *testassert.CollectT) {
		txn := db.ReadTxn()
		for _, table := range []statedb.TableMeta{tables.Endpoints, tables.Identities, tables.Nodes, tables.Services} {
			done, _ := table.(interface {
				Initialized(statedb.ReadTxn) (bool, <-chan struct{})
			}).Initialized(txn)
			require.True(c, done, table.Name())
		}
	}, patience, tick)
	return tables, db
}
