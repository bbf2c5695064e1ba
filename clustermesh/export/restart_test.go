// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// process is an exporter that runs, and its Kubernetes.
type process struct {
	k8s      *fakeclient.FakeClientset
	exporter *export.Exporter
	stop     func()
}

// startProcess starts an exporter to the etcd at url, on a cluster that has a
// namespace "foo" and what fill adds.
func startProcess(t testing.TB, url string, fill func(*fakeclient.FakeClientset)) *process {
	t.Helper()
	p := &process{}
	h := newHive(cell.Invoke(func(k8s *fakeclient.FakeClientset, e *export.Exporter) { p.k8s, p.exporter = k8s, e }))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse([]string{
		"--cluster-id=3", "--cluster-name=cluster3", "--kvstore-opt=" + etcd.OptAddress + "=" + url,
	}))
	log := quiet(t)
	require.NoError(t, h.Populate(log))
	_, err := p.k8s.Slim().CoreV1().Namespaces().Create(t.Context(),
		&slim_corev1.Namespace{ObjectMeta: slim_metav1.ObjectMeta{Name: "foo"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	fill(p.k8s)
	require.NoError(t, h.Start(log, t.Context()))
	stopped := false
	p.stop = func() {
		if !stopped {
			stopped = true
			assert.NoError(t, h.Stop(log, context.Background()))
		}
	}
	t.Cleanup(p.stop)
	return p
}

func (p *process) awaitSync(t testing.TB) {
	t.Helper()
	select {
	case <-p.exporter.Synced():
	case <-time.After(30 * time.Second):
		require.FailNow(t, "the exporter isn't synced")
	}
}

func addPod(t testing.TB, k8s *fakeclient.FakeClientset, name, ip string, identity int64) {
	t.Helper()
	_, err := k8s.CiliumV2().CiliumEndpoints("foo").Create(t.Context(), &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "foo"},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: identity},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: ip}}, NodeIP: "172.18.0.2",
			},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func addNode(t testing.TB, k8s *fakeclient.FakeClientset, name string) {
	t.Helper()
	_, err := k8s.CiliumV2().CiliumNodes().Create(t.Context(),
		&ciliumv2.CiliumNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// list is all keys of an etcd, as one read sees them.
func list(t require.TestingT, client *etcd.Client) *clientv3.GetResponse {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := client.Etcd().Get(ctx, "cilium/", clientv3.WithPrefix())
	require.NoError(t, err)
	return resp
}

func keysOf(resp *clientv3.GetResponse) (keys []string) {
	for _, kv := range resp.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestRestartWritesTheDifference restarts an exporter on a cluster that has
// changed in the meantime.
func TestRestartWritesTheDifference(t *testing.T) {
	server := startEtcd(t)
	client := newClient(t, server)
	first := startProcess(t, server.URL(), func(k8s *fakeclient.FakeClientset) {
		addPod(t, k8s, "same", "10.0.0.1", 200001)
		addPod(t, k8s, "changes", "10.0.0.2", 200001)
		addPod(t, k8s, "goes", "10.0.0.3", 200001)
		addNode(t, k8s, "same")
	})
	first.awaitSync(t)
	require.Equal(t, 3, first.exporter.Counts()[wire.Endpoints])
	// The canaries follow what they stand for.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		keys := keysOf(list(c, client))
		for counted := range first.exporter.Counts() {
			require.Contains(c, keys, wire.CanaryKey(counted, "cluster3", false))
		}
	}, 10*time.Second, 10*time.Millisecond)
	first.stop()

	before := list(t, client)
	for _, kv := range before.Kvs {
		require.NotZero(t, kv.Lease, "%s is on a lease", kv.Key)
	}

	second := startProcess(t, server.URL(), func(k8s *fakeclient.FakeClientset) {
		addPod(t, k8s, "same", "10.0.0.1", 200001)
		addPod(t, k8s, "changes", "10.0.0.2", 200002)
		addPod(t, k8s, "comes", "10.0.0.4", 200001)
		addNode(t, k8s, "same")
	})
	second.awaitSync(t)

	// What is left over goes after everything else was written.
	var after *clientv3.GetResponse
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		after = list(c, client)
		require.NotContains(c, keysOf(after), "cilium/state/ip/v1/default/10.0.0.3")
		require.Contains(c, keysOf(after), "cilium/state/ip/v1/default/10.0.0.4")
	}, 10*time.Second, 10*time.Millisecond)

	var changed []string
	for event := range history(t, client, before.Header.Revision, after.Header.Revision) {
		changed = append(changed, event.Type.String()+" "+strings.TrimPrefix(string(event.Kv.Key), "cilium/"))
	}
	changed = slices.DeleteFunc(changed, func(s string) bool {
		return s == "PUT .heartbeat" || s == "PUT cluster-config/cluster3"
	})
	slices.Sort(changed)
	require.Equal(t, []string{
		"DELETE state/ip/v1/default/10.0.0.3",
		"PUT state/ip/v1/default/10.0.0.2",
		"PUT state/ip/v1/default/10.0.0.4",
	}, changed)
}

// history gives what happened after one revision, up to another one.
func history(t testing.TB, client *etcd.Client, after, until int64) func(func(*clientv3.Event) bool) {
	return func(yield func(*clientv3.Event) bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for resp := range client.Etcd().Watch(ctx, "cilium/", clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
			require.NoError(t, resp.Err())
			for _, event := range resp.Events {
				if event.Kv.ModRevision <= until && !yield(event) {
					return
				}
			}
			if resp.Header.Revision >= until {
				return
			}
		}
		require.FailNow(t, "the history ended early")
	}
}

// TestEtcdLosesEverything replaces the etcd by an empty one at the same address.
func TestEtcdLosesEverything(t *testing.T) {
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	url := server.URL()
	p := startProcess(t, url, func(k8s *fakeclient.FakeClientset) {
		addPod(t, k8s, "a", "10.0.0.1", 200001)
		addPod(t, k8s, "b", "10.0.0.2", 200001)
		addNode(t, k8s, "n")
	})
	p.awaitSync(t)
	expected := []string{
		"cilium/.heartbeat",
		"cilium/cluster-config/cluster3",
		"cilium/state/ip/v1/default/10.0.0.1",
		"cilium/state/ip/v1/default/10.0.0.2",
		"cilium/state/nodes/v1/cluster3/n",
		"cilium/synced/cluster3/cilium/state/identities/v1",
		"cilium/synced/cluster3/cilium/state/ip/v1",
		"cilium/synced/cluster3/cilium/state/nodes/v1",
		"cilium/synced/cluster3/cilium/state/serviceexports/v1",
		"cilium/synced/cluster3/cilium/state/services/v1",
	}
	complete := func(server *etcd.Server) (resp *clientv3.GetResponse) {
		client := newClient(t, server)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			resp = list(c, client)
			require.Equal(c, expected, keysOf(resp))
		}, 30*time.Second, 10*time.Millisecond)
		return resp
	}
	complete(server)
	server.Close()

	// While it is away an endpoint goes and another one comes.
	require.NoError(t, p.k8s.CiliumV2().CiliumEndpoints("foo").Delete(t.Context(), "b", metav1.DeleteOptions{}))
	addPod(t, p.k8s, "c", "10.0.0.3", 200001)
	expected[3] = "cilium/state/ip/v1/default/10.0.0.3"

	server, err = etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: url})
	require.NoError(t, err)
	defer server.Close()
	defer p.stop()
	resp := complete(server)
	created := map[string]int64{}
	for _, kv := range resp.Kvs {
		created[string(kv.Key)] = kv.CreateRevision
	}
	require.Greater(t, created["cilium/synced/cluster3/cilium/state/ip/v1"], created["cilium/state/ip/v1/default/10.0.0.1"],
		"the canary comes last")
	require.Greater(t, created["cilium/synced/cluster3/cilium/state/nodes/v1"], created["cilium/state/nodes/v1/cluster3/n"])
}
