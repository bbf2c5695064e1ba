// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	slimcorev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slimmetav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// movingPod is a pod of the cluster north, as its Kubernetes has it.
type movingPod struct {
	namespace, name     string
	addresses           []string
	identity            int
	labels, annotations map[string]string
	// stays: its endpoint is never deleted, and its namespace always global.
	stays, exists bool
}

// movingPods are all of them, with what the rules make of them.
type movingPods struct {
	t       *testing.T
	rng     *rand.Rand
	objects *mesh.Objects
	pods    []*movingPod
	global  map[string]bool // namespaces
}

// movingNamespaces are shop, which is always global, and where half of the pods stay,
// and lab, which isn't always, and where none does.
var movingNamespaces = []string{"shop", "lab"}

const (
	podsOfEach       = 12
	identitiesOfEach = 4
)

func newMovingPods(t *testing.T, rng *rand.Rand, objects *mesh.Objects) *movingPods {
	m := &movingPods{t: t, rng: rng, objects: objects, global: map[string]bool{}}
	for i, namespace := range movingNamespaces {
		m.setGlobal(namespace, true)
		for n := range identitiesOfEach {
			require.NoError(t, objects.CiliumFakeClientset.Tracker().Add(&ciliumv2.CiliumIdentity{
				ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(identityOf(i, n))},
				SecurityLabels: map[string]string{
					"k8s:app": strconv.Itoa(n), "k8s:" + wire.LabelCluster: "north", "k8s:" + wire.LabelNamespace: namespace,
				},
			}))
		}
		for n := range podsOfEach {
			pod := &movingPod{
				namespace: namespace, name: fmt.Sprintf("pod-%d", n), identity: identityOf(i, 0), stays: i == 0 && n < podsOfEach/2,
				addresses: addressesOf(i, n),
			}
			m.pods = append(m.pods, pod)
			m.create(pod)
		}
	}
	return m
}

func identityOf(namespace, n int) int { return 1<<16 + 100 + 10*namespace + n }

func addressesOf(namespace, n int) []string {
	return []string{fmt.Sprintf("10.1.%d.%d", namespace, n+1), fmt.Sprintf("fd00:1::%d:%x", namespace+1, n+1)}
}

// change makes one change, and gives the pod that it is about; nil for others.
func (m *movingPods) change() *movingPod {
	pod := m.pods[m.rng.IntN(len(m.pods))]
	switch n := m.rng.IntN(20); {
	case n < 10:
		value := []string{"", "true", "true", "false", "malformed"}
		pod.labels, pod.annotations = map[string]string{}, map[string]string{}
		for _, in := range []map[string]string{pod.labels, pod.annotations} {
			if says := value[m.rng.IntN(len(value))]; says != "" {
				in[filter.SyncKey] = says
			}
		}
		if pod.exists {
			m.putPod(pod)
		}
	case n < 14:
		pod.identity = identityOf(slices.Index(movingNamespaces, pod.namespace), m.rng.IntN(identitiesOfEach))
		if pod.exists {
			m.putEndpoint(pod)
		}
	case n < 19:
		switch {
		case pod.stays:
		case pod.exists:
			m.delete(pod)
		default:
			m.create(pod)
		}
	default:
		m.setGlobal("lab", !m.global["lab"])
		return nil
	}
	return pod
}

func (m *movingPods) setGlobal(namespace string, global bool) {
	m.global[namespace] = global
	require.NoError(m.t, m.objects.SlimFakeClientset.Tracker().Add(&slimcorev1.Namespace{ObjectMeta: slimmetav1.ObjectMeta{
		Name: namespace, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: strconv.FormatBool(global)},
	}}))
}

func (m *movingPods) create(pod *movingPod) {
	pod.exists = true
	if m.rng.IntN(2) == 0 {
		m.putPod(pod)
		m.putEndpoint(pod)
	} else {
		m.putEndpoint(pod)
		m.putPod(pod)
	}
}

func (m *movingPods) delete(pod *movingPod) {
	pod.exists = false
	require.NoError(m.t, m.objects.CiliumFakeClientset.Tracker().Delete(
		schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumendpoints"}, pod.namespace, pod.name))
	require.NoError(m.t, m.objects.SlimFakeClientset.Tracker().Delete(
		schema.GroupVersionResource{Version: "v1", Resource: "pods"}, pod.namespace, pod.name))
}

// putPod and putEndpoint make an object or update it, as the tracker's Add does.
func (m *movingPods) putPod(pod *movingPod) {
	require.NoError(m.t, m.objects.SlimFakeClientset.Tracker().Add(&slimcorev1.Pod{ObjectMeta: slimmetav1.ObjectMeta{
		Name: pod.name, Namespace: pod.namespace, Labels: pod.labels, Annotations: pod.annotations,
	}}))
}

func (m *movingPods) putEndpoint(pod *movingPod) {
	require.NoError(m.t, m.objects.CiliumFakeClientset.Tracker().Add(&ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: pod.name, Namespace: pod.namespace},
		Status: ciliumv2.EndpointStatus{
			Identity: &ciliumv2.EndpointIdentity{ID: int64(pod.identity)},
			Networking: &ciliumv2.EndpointNetworking{
				Addressing: ciliumv2.AddressPairList{{IPV4: pod.addresses[0], IPV6: pod.addresses[1]}},
				NodeIP:     "172.18.0.2",
			},
		},
	}))
}

func (m *movingPods) fate(pod *movingPod) filter.Fate {
	if !pod.exists {
		return filter.Kept
	}
	return filter.WorkloadPolicy{Mode: filter.SyncOptIn}.Endpoint(m.global[pod.namespace], filter.ParseWorkload(pod.labels, pod.annotations))
}

// used are the identities of the pods that are pushed.
func (m *movingPods) used() map[int]bool {
	used := map[int]bool{}
	for _, pod := range m.pods {
		if m.fate(pod) == filter.Pushed {
			used[pod.identity] = true
		}
	}
	return used
}

// Where the keys of endpoints and identities are, by their fate.
var (
	endpointPlaces = map[filter.Fate]string{
		filter.Pushed: wire.StatePrefix(wire.Endpoints, "north"), filter.OnDemand: wire.OnDemandEndpointPrefix,
	}
	identityPlaces = map[filter.Fate]string{
		filter.Pushed: wire.StatePrefix(wire.Identities, "north"), filter.OnDemand: wire.OnDemandIdentityPrefix,
	}
)

// staying are the addresses and identities that are somewhere all the time.
func (m *movingPods) staying() map[string]bool {
	staying := map[string]bool{}
	for _, pod := range m.pods {
		for _, address := range pod.addresses {
			staying[address] = pod.stays
		}
	}
	for n := range identitiesOfEach {
		staying[strconv.Itoa(identityOf(0, n))] = true
	}
	return staying
}

// keys are those that the etcd of north is to have, sorted.
func (m *movingPods) keys() (keys []string) {
	for _, pod := range m.pods {
		if place := endpointPlaces[m.fate(pod)]; place != "" {
			for _, address := range pod.addresses {
				keys = append(keys, place+address)
			}
		}
	}
	used := m.used()
	for i, namespace := range movingNamespaces {
		for n := range identitiesOfEach {
			if m.global[namespace] {
				id := identityOf(i, n)
				keys = append(keys, identityPlaces[filter.WorkloadPolicy{Mode: filter.SyncOptIn}.Identity(true, used[id])]+strconv.Itoa(id))
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// rows are those that an agent of another cluster is to have, sorted.
func (m *movingPods) rows() (rows []string) {
	for _, pod := range m.pods {
		if m.fate(pod) == filter.Pushed {
			for _, address := range pod.addresses {
				rows = append(rows, fmt.Sprintf("%s %s/%s %d", address, pod.namespace, pod.name, pod.identity))
			}
		}
	}
	for id := range m.used() {
		rows = append(rows, strconv.Itoa(id))
	}
	slices.Sort(rows)
	return rows
}

// takenIn are the rows that it has.
func takenIn(db *statedb.DB, tables state.Tables) (rows []string) {
	txn := db.ReadTxn()
	for row := range tables.Endpoints.All(txn) {
		rows = append(rows, fmt.Sprintf("%s %s/%s %d", row.Prefix().Addr(), row.Namespace(), row.Pod(), row.Identity()))
	}
	for row := range tables.Identities.All(txn) {
		rows = append(rows, strconv.FormatUint(uint64(row.ID), 10))
	}
	slices.Sort(rows)
	return rows
}

// awaitEqual waits until what is asked for is what is wanted.
func awaitEqual(t *testing.T, want []string, ask func() []string) {
	t.Helper()
	var got []string
	look := func(context.Context) (bool, error) {
		got = ask()
		return slices.Equal(want, got), nil
	}
	if err := wait.PollUntilContextTimeout(t.Context(), tick, patience, true, look); err != nil {
		require.Equal(t, want, got)
	}
}

// TestPodsMoveUnderLoad has pods opt in and out, change their identity, come and go,
// and a namespace be global or not, at random and in the midst of each other's effects,
// on the way from Kubernetes to an agent of another cluster. In each transaction of the
// agent an endpoint's identity is there; at each revision of the source's etcd, what
// moves is in one of its places; and whenever all has settled, what the rules say is
// where they say.
func TestPodsMoveUnderLoad(t *testing.T) {
	const changes = 3000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	objects := mesh.NewObjects(t)
	north, west := mesh.NewCluster(t, "north", 1), mesh.NewCluster(t, "west", 2)
	pods := newMovingPods(t, rng, objects)
	places := slices.Concat(slices.Collect(maps.Values(endpointPlaces)), slices.Collect(maps.Values(identityPlaces)))
	vanished := watchPlaces(t, north.Etcd, places, pods.staying())
	agent := newWatchedAgent(t, west)
	north.NewExporter(t, objects, mesh.Flags{
		"clustermesh-sync-mode": string(filter.SyncOptIn),
		// Commits of so few operations that what is queued in the wrong order, or too early,
		// is there at a revision of its own.
		"kvstore-opt": fmt.Sprintf("%s=%s,%s=2,%s=100000", etcd.OptAddress, north.Etcd.URL(), etcd.OptMaxTxnOps, etcd.OptQPS),
	}).Start()
	west.NewKVStoreMesh(t, mesh.NewDirectory(t).Add("north", north.Etcd)).Start()
	agent.Start()

	inEtcd := func(prefix string) []string {
		content, err := north.Etcd.List(t.Context(), prefix)
		require.NoError(t, err)
		return slices.Sorted(maps.Keys(content))
	}
	settled := func() {
		t.Helper()
		awaitEqual(t, pods.keys(), func() []string { return inEtcd(wire.StateRoot) })
		awaitEqual(t, pods.rows(), func() []string { return takenIn(agent.db, agent.tables) })
	}
	settled()
	for range changes {
		pod := pods.change()
		switch n := rng.IntN(50); { // else the next change meets the effects of this one
		case n == 0:
			settled()
		case n < 10 && pod != nil:
			var want []string
			if place := endpointPlaces[pods.fate(pod)]; place != "" {
				want = []string{place + pod.addresses[0]}
			}
			awaitEqual(t, want, func() (keys []string) {
				for _, place := range endpointPlaces {
					keys = append(keys, slices.DeleteFunc(inEtcd(place+pod.addresses[0]), func(key string) bool {
						return key != place+pod.addresses[0]
					})...)
				}
				return keys
			})
		}
	}
	settled()
	require.Empty(t, vanished(), "in neither place")
	agent.look() // what the last transaction made
	unknown, seen := agent.result()
	t.Logf("%d transactions with changes", seen)
	require.Empty(t, unknown, "without their identity")
	require.NotZero(t, seen)
	row, _, found := agent.tables.RemoteClusters.Get(agent.db.ReadTxn(), state.RemoteClusterByName("north"))
	require.True(t, found)
	require.Zero(t, row.Late)
	require.Empty(t, row.Refused)
}

// newWatchedAgent makes an agent that reads north behind west's KVStoreMesh, and in
// which somebody looks at each transaction.
func newWatchedAgent(t *testing.T, west *mesh.Cluster) *watchedAgent {
	a := &watchedAgent{endpoints: map[string]uint32{}, identities: map[uint32]bool{}}
	flags := west.Flags(mesh.Flags{
		"ipcache-backend": ipcache.BackendMemory, "state-dir": t.TempDir(), "enable-k8s": "false",
		"clustermesh-config": mesh.NewDirectory(t).Add("north", west.Etcd).Path,
	})
	a.Hive = mesh.NewHive(t, flags, cells.Agent,
		cell.DecorateAll(func(metrics statedb.Metrics) statedb.Metrics { return &eachTransaction{metrics, a} }),
		// An endpoint may be taken in without its identity after ten seconds. None is to
		// need that, and on a busy machine ten seconds aren't long.
		cell.DecorateAll(func(_ remote.Factory, log *slog.Logger, writer *state.Writer, local wire.ClusterInfo, startup *ingest.Startup) remote.Factory {
			return ingest.NewFactory(ingest.Options{Log: log, Writer: writer, Local: local, Startup: startup, HoldTimeout: time.Hour})
		}),
		cell.Invoke(a.follow))
	return a
}
