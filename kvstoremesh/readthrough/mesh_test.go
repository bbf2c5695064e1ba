// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	patience = 2 * time.Minute
	tick     = 5 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// North is a cluster in opt-in mode: web is pushed, and db isn't.
const (
	webAddr, webIdentity = "10.1.0.10", 65546
	dbAddr, dbIdentity   = "10.1.0.11", 65547
)

// world is two clusters, whose etcds have upstream's roles: what north exports, west's
// KVStoreMesh copies and looks up.
type world struct {
	t           testing.TB
	north, west *mesh.Cluster
	objects     *mesh.Objects
	exporter    *mesh.Exporter
	mesh        *mesh.KVStoreMesh
	// address is where the read-through is served, for clients.
	address string
}

func newWorld(t testing.TB, flags mesh.Flags) *world {
	w := &world{t: t, north: mesh.NewCluster(t, "north", 1), west: mesh.NewCluster(t, "west", 2), objects: mesh.NewObjects(t)}
	w.north.EnableRoles(t)
	w.west.EnableRoles(t)
	create(t, w.objects, "web", webAddr, webIdentity, "true")
	create(t, w.objects, "db", dbAddr, dbIdentity, "false")
	w.exporter = w.north.NewExporter(t, w.objects, mesh.Flags{
		"clustermesh-sync-mode": string(filter.SyncOptIn),
		"kvstore-opt":           etcd.OptConfig + "=" + w.north.Etcd.ConfigAs(t, mesh.UserRoot),
	})
	w.exporter.Start()
	w.mesh = w.west.NewKVStoreMesh(t, mesh.NewDirectory(t).AddAs("north", w.north.Etcd, mesh.UserRemote), mesh.Flags{
		"kvstore-opt": etcd.OptConfig + "=" + w.west.Etcd.ConfigAs(t, mesh.UserRoot),
	}, flags)
	w.mesh.Start()
	w.address = flags["ondemand-listen-address"]
	return w
}

// freeAddress is an address of loopback on which nothing listens.
func freeAddress(t testing.TB) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// create adds a pod with an identity of its own, and what it says of itself.
func create(t testing.TB, objects *mesh.Objects, name, address string, identity int, sync string) {
	t.Helper()
	const namespace = "shop"
	meta := metav1.ObjectMeta{Name: name, Namespace: namespace}
	for _, object := range []runtime.Object{
		&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{
			Name: namespace, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "true"},
		}},
		&slimcorev1.Pod{ObjectMeta: slimmetav1.ObjectMeta{
			Name: name, Namespace: namespace, Annotations: map[string]string{filter.SyncKey: sync},
		}},
	} {
		require.NoError(t, objects.SlimFakeClientset.Tracker().Add(object))
	}
	for _, object := range []runtime.Object{
		&ciliumv2.CiliumIdentity{
			ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(identity)},
			SecurityLabels: map[string]string{
				"k8s:app": name, "k8s:" + wire.LabelCluster: "north", "k8s:" + wire.LabelNamespace: namespace,
			},
		},
		&ciliumv2.CiliumEndpoint{ObjectMeta: meta, Status: ciliumv2.EndpointStatus{
			Identity:   &ciliumv2.EndpointIdentity{ID: int64(identity)},
			Networking: &ciliumv2.EndpointNetworking{Addressing: ciliumv2.AddressPairList{{IPV4: address}}, NodeIP: "172.18.0.2"},
		}},
	} {
		require.NoError(t, objects.CiliumFakeClientset.Tracker().Add(object))
	}
}

func question(addr string, identity uint32) ondemand.Question {
	return ondemand.Question{Cluster: "north", ClusterID: 1, Addr: netip.MustParseAddr(addr), Identity: identity}
}

// summary is what an answer says.
func summary(a ondemand.Answer) string {
	var parts []string
	if a.Endpoint != nil {
		parts = append(parts, fmt.Sprintf("%s %s/%s %d at %s", a.Endpoint.Prefix, a.Endpoint.Namespace, a.Endpoint.Pod, a.Endpoint.Identity, a.Endpoint.HostIP))
	}
	for _, id := range a.Identities {
		app, _ := wire.Label(id.Labels, "app")
		parts = append(parts, fmt.Sprintf("%d is %s", id.ID, app))
	}
	return strings.Join(parts, ", ")
}

const (
	webIsThere = "10.1.0.10/32 shop/web 65546 at 172.18.0.2"
	dbIsThere  = "10.1.0.11/32 shop/db 65547 at 172.18.0.2"
)

// resolve asks one question.
func resolve(ctx context.Context, resolver ondemand.IPCacheMissResolver, q ondemand.Question) (ondemand.Answer, error) {
	got := resolver.Resolve(ctx, []ondemand.Question{q})[0]
	return got.Answer, got.Err
}

// eventually asks until the answer is as wanted.
func eventually(t testing.TB, resolver ondemand.IPCacheMissResolver, q ondemand.Question, want string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		answer, err := resolve(ctx, resolver, q)
		require.NoError(c, err)
		require.Equal(c, want, summary(answer))
	}, patience, tick)
}

// readThrough makes the agent's resolver from a configuration.
func readThrough(t testing.TB, path string) *ondemand.ReadThrough {
	resolver, err := ondemand.NewReadThrough(mesh.Log(t), path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, resolver.Close()) })
	return resolver
}

// secured are the flags of a read-through that asks for certificates of the CA.
func secured(t testing.TB, ca *authority, names string) mesh.Flags {
	ca.issue("server", "kvstoremesh", "localhost")
	return mesh.Flags{
		"ondemand-listen-address": freeAddress(t), "ondemand-cert-file": ca.file("server.crt"), "ondemand-key-file": ca.file("server.key"),
		"ondemand-trusted-ca-file": ca.file("ca.crt"), "ondemand-allowed-names": names,
	}
}

// TestLookedUp has what isn't pushed looked up on its whole way, with the roles that
// upstream gives an etcd's users, and certificates: by the agent's resolvers, and by
// etcd's own client.
func TestLookedUp(t *testing.T) {
	ca := newAuthority(t)
	ca.issue("agent", "agent.west")
	w := newWorld(t, secured(t, ca, "agent.west,other"))
	through := readThrough(t, ca.config("https://"+w.address, ca, "agent"))
	eventually(t, through, question(dbAddr, 0), dbIsThere+", 65547 is db")
	eventually(t, through, question(webAddr, 0), webIsThere+", 65546 is web")
	// A packet has named another identity than the endpoint has.
	eventually(t, through, question(webAddr, dbIdentity), webIsThere+", 65547 is db, 65546 is web")
	eventually(t, through, question("10.1.0.99", dbIdentity), "65547 is db")
	_, err := resolve(t.Context(), through, question("10.1.0.99", 0))
	require.ErrorIs(t, err, ondemand.ErrNotFound)

	// The local etcd has what is pushed, for its local users.
	local := localResolver(t, w.west, mesh.NewDirectory(t).AddAs("north", w.west.Etcd, mesh.LocalUser("west")))
	eventually(t, local, question(webAddr, 0), webIsThere+", 65546 is web")
	eventually(t, local, question(webAddr, dbIdentity), webIsThere+", 65546 is web")
	_, err = resolve(t.Context(), local, question(dbAddr, 0))
	require.ErrorIs(t, err, ondemand.ErrNotFound)
	unknown := question(dbAddr, 0)
	unknown.Cluster = "south"
	_, err = resolve(t.Context(), local, unknown)
	require.ErrorIs(t, err, ondemand.ErrUnavailable)
	moved := question(dbAddr, 0)
	moved.ClusterID = 7
	_, err = resolve(t.Context(), local, moved)
	require.ErrorIs(t, err, ondemand.ErrUnavailable)

	// An agent that reads the cluster's own etcd needs nobody else.
	direct := localResolver(t, w.west, mesh.NewDirectory(t).AddAs("north", w.north.Etcd, mesh.UserRemote))
	eventually(t, direct, question(dbAddr, 0), dbIsThere+", 65547 is db")

	client := etcdClient(t, ca.config("https://"+w.address, ca, "agent"))
	key := wire.EndpointLookup("north", netip.MustParseAddr(dbAddr)).ReadThroughKey()
	resp, err := client.Get(t.Context(), key)
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	require.Equal(t, key, string(resp.Kvs[0].Key))
	endpoint, err := wire.DecodeEndpoint(dbAddr, resp.Kvs[0].Value, nil)
	require.NoError(t, err)
	require.EqualValues(t, dbIdentity, endpoint.Identity)
	source, err := w.north.Etcd.Client().Etcd().Get(t.Context(), wire.OnDemandEndpointPrefix+dbAddr)
	require.NoError(t, err)
	require.Equal(t, source.Kvs[0].ModRevision, resp.Kvs[0].ModRevision)
	require.Equal(t, source.Header.ClusterId, resp.Header.ClusterId)
}

// TestIncomplete: that there is nothing counts when the etcd says that it has everything,
// in the layout that it is in.
func TestIncomplete(t *testing.T) {
	for name, of := range map[string]struct {
		cached bool
		config string
		prefix string
	}{
		"the cluster's own": {false, `{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`, wire.OnDemandEndpointPrefix},
		"a copy":            {true, `{"id":1,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255}}`, wire.CachePrefix(wire.Endpoints, "north")},
	} {
		t.Run(name, func(t *testing.T) {
			north := mesh.StartEtcd(t)
			put(t, north, wire.ClusterConfigKey("north"), of.config)
			local := localResolver(t, mesh.NewCluster(t, "west", 2), mesh.NewDirectory(t).Add("north", north))
			says := func(want error, text string) {
				t.Helper()
				require.EventuallyWithT(t, func(c *assert.CollectT) {
					_, err := resolve(t.Context(), local, question(dbAddr, 0))
					require.ErrorIs(c, err, want)
					require.ErrorContains(c, err, text)
				}, patience, tick)
			}
			says(ondemand.ErrUnavailable, `"north" doesn't say that all of its endpoints are there`)
			put(t, north, wire.CanaryKey(wire.Endpoints, "north", !of.cached), "now")
			says(ondemand.ErrUnavailable, `"north" doesn't say that all of its endpoints are there`)
			put(t, north, wire.CanaryKey(wire.Endpoints, "north", of.cached), "now")
			says(ondemand.ErrNotFound, dbAddr)

			_, err := north.Client().Etcd().Delete(t.Context(), wire.BasePrefix, clientv3.WithPrefix())
			require.NoError(t, err)
			says(ondemand.ErrUnavailable, `"north"`)
			put(t, north, wire.ClusterConfigKey("north"), of.config)
			put(t, north, of.prefix+dbAddr, `{"IP":"10.1.0.11","HostIP":"172.18.0.2","ID":4,"K8sNamespace":"shop","K8sPodName":"db"}`)
			eventually(t, local, question(dbAddr, 0), "10.1.0.11/32 shop/db 4 at 172.18.0.2")
		})
	}
}

// etcdClient is etcd's own client.
func etcdClient(t testing.TB, path string) *clientv3.Client {
	client, err := etcd.NewClient(mesh.Log(t), etcd.ClientConfig{ConfigPath: path})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client.Etcd()
}

// localResolver is the one of an agent that follows these clusters.
func localResolver(t testing.TB, of *mesh.Cluster, directory *mesh.Directory) *ondemand.Local {
	var local *ondemand.Local
	agent := mesh.NewHive(t, of.Flags(mesh.Flags{
		"ipcache-backend": ipcache.BackendMemory, "state-dir": t.TempDir(), "enable-k8s": "false",
		"clustermesh-config": directory.Path,
	}), cells.Agent, cell.Invoke(func(m *remote.Mesh) { local = ondemand.NewLocal(m, nil) }))
	agent.Start()
	return local
}
