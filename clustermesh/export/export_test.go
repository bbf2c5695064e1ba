// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Started by packages that the embedded etcd imports, for good.
		goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"),
	)
}

const (
	localName = "ours"
	localID   = 3
)

// recorder is a scope that remembers what it was told.
type recorder struct {
	mu       sync.Mutex
	loads    int
	loadErr  error
	batches  [][]etcd.Op
	keys     map[string]string
	complete int
	told     chan struct{} // gets something after each call
}

func newRecorder() *recorder {
	return &recorder{keys: map[string]string{}, told: make(chan struct{}, 1024)}
}

func (r *recorder) Load(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loads++
	err := r.loadErr
	r.loadErr = nil
	return err
}

func (r *recorder) Apply(ops []etcd.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = append(r.batches, append([]etcd.Op(nil), ops...))
	for _, op := range ops {
		if op.Delete {
			delete(r.keys, op.Key)
		} else {
			r.keys[op.Key] = string(op.Value)
		}
	}
	r.told <- struct{}{}
}

func (r *recorder) Complete() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete++
	r.told <- struct{}{}
}

func (r *recorder) Barrier(context.Context) error { return nil }

func (r *recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.keys)
}

// get is the value of a key; "" where it isn't there.
func (r *recorder) get(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys[key]
}

func (r *recorder) completed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.complete
}

// lastBatch is the keys of the last batch, a delete with a minus before it.
func (r *recorder) lastBatch() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.batches) == 0 {
		return nil
	}
	var out []string
	for _, op := range r.batches[len(r.batches)-1] {
		if op.Delete {
			out = append(out, "-"+op.Key)
		} else {
			out = append(out, op.Key)
		}
	}
	return out
}

// globalUnlessFalse is a policy for tests: the annotation decides, and without
// it a namespace is global.
func globalUnlessFalse(ns *state.Namespace) bool {
	return ns.Annotations["clustermesh.cilium.io/global"] != "false"
}

// rig is an exporter over real tables and recorders, driven by rounds.
type rig struct {
	t       testing.TB
	writer  *state.Writer
	local   *state.Origin
	remote  *state.Origin
	done    map[wire.Resource]func(*state.Txn)
	scopes  map[wire.Resource]*recorder
	export  *Exporter
	changes statedb.ChangeIterator[*state.Namespace]
}

func newRig(t testing.TB, options Options) *rig {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	r := &rig{
		t:      t,
		writer: writer,
		local:  writer.Origin(localName, localID, state.SourceLocal),
		remote: writer.Origin("theirs", 4, state.SourceClusterMesh),
		done:   map[wire.Resource]func(*state.Txn){},
		scopes: map[wire.Resource]*recorder{},
	}
	for _, resource := range []wire.Resource{wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports, state.Namespaces} {
		r.done[resource] = writer.RegisterInitializer("test", resource)
	}
	r.export = newExporter(hivetest.Logger(t), db, writer.Tables(), localName, options, globalUnlessFalse,
		func(resource wire.Resource, _ func([]string)) scope {
			r.scopes[resource] = newRecorder()
			return r.scopes[resource]
		})
	return r
}

// begin does what run does before its first round.
func (r *rig) begin() {
	changes, err := r.export.follow()
	require.NoError(r.t, err)
	r.changes = changes
}

// write changes the tables in one transaction.
func (r *rig) write(fn func(*state.Txn)) {
	tx := r.writer.Begin()
	fn(tx)
	tx.Commit()
}

// initialize marks tables as initialized.
func (r *rig) initialize(resources ...wire.Resource) {
	r.write(func(tx *state.Txn) {
		for _, resource := range resources {
			r.done[resource](tx)
		}
	})
}

func (r *rig) initializeAll() {
	r.initialize(state.Namespaces, wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports)
}

// round runs one round.
func (r *rig) round() {
	r.t.Helper()
	require.NoError(r.t, r.export.round(context.Background(), r.changes, statedb.NewWatchSet()))
}

func (r *rig) namespace(tx *state.Txn, name string, global bool) {
	ns := state.Namespace{Name: name}
	if !global {
		ns.Annotations = map[string]string{"clustermesh.cilium.io/global": "false"}
	}
	tx.UpsertNamespace(ns)
}

func endpoint(ip, namespace, pod string) wire.Endpoint {
	return wire.Endpoint{
		Prefix: state.PrefixOf(netip.MustParseAddr(ip)), HostIP: netip.MustParseAddr("172.18.0.2"),
		Identity: 200000, Namespace: namespace, Pod: pod,
	}
}

func identity(id uint32, namespace string) wire.Identity {
	return wire.Identity{ID: id, Labels: "k8s:app=x;k8s:" + wire.LabelNamespace + "=" + namespace + ";"}
}

func service(namespace, name string, shared bool) *wire.Service {
	return &wire.Service{Cluster: localName, ClusterID: localID, Namespace: namespace, Name: name, Shared: shared}
}

func serviceExport(namespace, name string) *wire.ServiceExport {
	return &wire.ServiceExport{
		Cluster: localName, Namespace: namespace, Name: name,
		Type: "ClusterSetIP", SessionAffinity: "None",
	}
}

var owner = state.Owner{Object: "endpoint/x"}

func TestEachResourceCompletesWithItsTable(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
	})
	r.round()
	require.Contains(t, r.scopes[wire.Nodes].get("n1"), `"Name":"n1"`, "what is in no namespace goes before namespaces are known")
	require.Zero(t, r.scopes[wire.Endpoints].Len(), "what is in a namespace waits for them")

	r.initialize(wire.Nodes, wire.Endpoints)
	r.round()
	require.Equal(t, 1, r.scopes[wire.Nodes].completed())
	require.Zero(t, r.scopes[wire.Endpoints].completed())

	r.initialize(state.Namespaces)
	r.round()
	require.Contains(t, r.scopes[wire.Endpoints].get("10.0.0.1"), `"K8sPodName":"x"`)
	require.Equal(t, 1, r.scopes[wire.Endpoints].completed())
	require.Zero(t, r.scopes[wire.Services].completed())

	r.initialize(wire.Services, wire.ServiceExports, wire.Identities)
	r.round()
	r.round()
	for resource, s := range r.scopes {
		require.Equal(t, 1, s.completed(), resource)
	}
	require.Equal(t, map[wire.Resource]int{
		wire.Identities: 0, wire.Nodes: 1, wire.Endpoints: 1, wire.Services: 0, wire.ServiceExports: 0,
	}, r.export.Counts())
}

func TestOnlyWhatIsLocalIsExported(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	foreignService := service("don", "web", true)
	foreignService.Cluster, foreignService.ClusterID = "theirs", 4
	foreignExport := serviceExport("don", "web")
	foreignExport.Cluster = "theirs"
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("10.0.0.1", "don", "theirs"))
		tx.UpsertIdentity(r.remote, identity(270000, "don"))
		tx.UpsertNode(r.remote, wire.Node{Name: "n1", Cluster: "theirs", ClusterID: 4})
		tx.UpsertService(r.remote, foreignService)
		tx.UpsertServiceExport(r.remote, foreignExport)
		tx.UpsertService(r.local, service("don", "web", true))
		tx.UpsertService(r.local, service("don", "private", false))
		tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
	})
	r.round()
	require.Equal(t, map[wire.Resource]int{
		wire.Identities: 0, wire.Nodes: 0, wire.Endpoints: 0, wire.Services: 1, wire.ServiceExports: 1,
	}, r.export.Counts())

	// A remote service of the same name that goes takes nothing along.
	r.write(func(tx *state.Txn) {
		tx.DeleteService(r.remote, "theirs", "don", "web")
		tx.DeleteServiceExport(r.remote, "theirs", "don", "web")
	})
	r.round()
	require.NotEmpty(t, r.scopes[wire.Services].get("don/web"))
	require.NotEmpty(t, r.scopes[wire.ServiceExports].get("don/web"))

	// A service that is no longer shared goes.
	r.write(func(tx *state.Txn) { tx.UpsertService(r.local, service("don", "web", false)) })
	r.round()
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.Services].lastBatch())
}

func TestAddressChangesHands(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	old, next := state.Owner{Object: "endpoint/old"}, state.Owner{Object: "endpoint/next"}
	endpoints := r.scopes[wire.Endpoints]
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, old, endpoint("10.0.0.1", "don", "old"))
	})
	r.round()
	r.write(func(tx *state.Txn) {
		tx.UpsertEndpoint(r.local, next, endpoint("10.0.0.1", "don", "next"))
		tx.UpsertEndpoint(r.remote, state.Owner{}, endpoint("10.0.0.1", "don", "theirs"))
	})
	r.round()
	require.Contains(t, endpoints.get("10.0.0.1"), `"old"`)

	r.write(func(tx *state.Txn) { tx.DeleteEndpoint(r.local, old, endpoint("10.0.0.1", "", "").Prefix) })
	r.round()
	require.Contains(t, endpoints.get("10.0.0.1"), `"next"`)
	require.Equal(t, []string{"10.0.0.1"}, endpoints.lastBatch(), "the key must never be gone in between")

	// What is left is a remote cluster's: not ours to export.
	r.write(func(tx *state.Txn) { tx.DeleteEndpoint(r.local, next, endpoint("10.0.0.1", "", "").Prefix) })
	r.round()
	require.Equal(t, []string{"-10.0.0.1"}, endpoints.lastBatch())
}

func TestNamedPortsAreAnOption(t *testing.T) {
	for _, named := range []bool{false, true} {
		r := newRig(t, Options{NamedPorts: named})
		r.begin()
		r.initializeAll()
		r.write(func(tx *state.Txn) {
			r.namespace(tx, "don", true)
			ep := endpoint("10.0.0.1", "don", "x")
			ep.NamedPorts = []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}}
			tx.UpsertEndpoint(r.local, owner, ep)
		})
		r.round()
		require.Equal(t, named, strings.Contains(r.scopes[wire.Endpoints].get("10.0.0.1"), "NamedPorts"))
	}
}

func TestNamespaceFlipDecidesItsObjectsAgain(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		r.namespace(tx, "don-2", true)
		for i, namespace := range []string{"don", "don-2", "nowhere"} {
			tx.UpsertEndpoint(r.local, owner, endpoint([]string{"10.0.0.1", "fd00::2", "10.0.0.3"}[i], namespace, "x"))
			tx.UpsertIdentity(r.local, identity(200000+uint32(i), namespace))
			tx.UpsertService(r.local, service(namespace, "web", true))
			tx.UpsertServiceExport(r.local, serviceExport(namespace, "web"))
		}
		tx.UpsertIdentity(r.local, wire.Identity{ID: 200009, Labels: "k8s:app=x;"}) // in no namespace
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
	})
	r.round()
	namespaced := []wire.Resource{wire.Endpoints, wire.Identities, wire.Services, wire.ServiceExports}
	for _, resource := range namespaced {
		require.Equal(t, 2, r.scopes[resource].Len(), resource)
	}

	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	r.round()
	require.Equal(t, []string{"-10.0.0.1"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"-200000"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.Services].lastBatch())
	require.Equal(t, []string{"-don/web"}, r.scopes[wire.ServiceExports].lastBatch())

	r.write(func(tx *state.Txn) { r.namespace(tx, "don", true) })
	r.round()
	require.Equal(t, []string{"10.0.0.1"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"200000"}, r.scopes[wire.Identities].lastBatch())

	// Another change of a namespace decides nothing again.
	batches := len(r.scopes[wire.Endpoints].batches)
	r.write(func(tx *state.Txn) {
		tx.UpsertNamespace(state.Namespace{Name: "don", Labels: map[string]string{"a": "b"}})
	})
	r.round()
	require.Len(t, r.scopes[wire.Endpoints].batches, batches)

	// A namespace that comes is global by the policy; one that goes isn't.
	r.write(func(tx *state.Txn) { r.namespace(tx, "nowhere", true); tx.DeleteNamespace("don-2") })
	r.round()
	require.ElementsMatch(t, []string{"10.0.0.3", "-fd00::2"}, r.scopes[wire.Endpoints].lastBatch())
	require.ElementsMatch(t, []string{"200002", "-200001"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, 1, r.scopes[wire.Nodes].Len())
}

func TestRefill(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
			tx.UpsertEndpoint(r.local, owner, endpoint(ip, "don", "x"))
		}
		tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
		tx.UpsertService(r.local, service("don", "web", true))
		tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
		tx.UpsertIdentity(r.local, identity(200000, "don"))
	})
	r.initializeAll()
	r.round()

	r.export.refills.ask(wire.Endpoints, []string{"10.0.0.2"})
	r.export.refills.ask(wire.Endpoints, []string{"10.0.0.2", "10.9.9.9", "not an address"})
	r.export.refills.ask(wire.Nodes, []string{"n1", "gone"})
	r.export.refills.ask(wire.Services, []string{"don/web", "nonsense"})
	r.export.refills.ask(wire.ServiceExports, []string{"don/web"})
	r.export.refills.ask(wire.Identities, []string{"200000", "x"})
	r.round()
	require.Equal(t, []string{"10.0.0.2"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, []string{"n1"}, r.scopes[wire.Nodes].lastBatch())
	require.Equal(t, []string{"don/web"}, r.scopes[wire.Services].lastBatch())
	require.Equal(t, []string{"don/web"}, r.scopes[wire.ServiceExports].lastBatch())
	require.Equal(t, []string{"200000"}, r.scopes[wire.Identities].lastBatch())
	require.Equal(t, 2, r.scopes[wire.Endpoints].completed())

	r.export.refills.ask(wire.Endpoints, nil)
	r.round()
	require.ElementsMatch(t, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, r.scopes[wire.Endpoints].lastBatch())
	require.Equal(t, 3, r.scopes[wire.Endpoints].completed())
	require.Equal(t, 2, r.scopes[wire.Nodes].completed())
}

func TestWhatCannotBeEncodedIsNamedAndSkipped(t *testing.T) {
	r := newRig(t, Options{})
	r.begin()
	r.initializeAll()
	tooLarge := service("don", "bad", true)
	tooLarge.Labels = map[string]string{"a": strings.Repeat("x", wire.MaxValueBytes)}
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertService(r.local, tooLarge)
		tx.UpsertService(r.local, service("don", "good", true))
	})
	r.round()
	require.Equal(t, []string{"don/good"}, r.scopes[wire.Services].lastBatch())
	health := &healthRecorder{}
	r.export.report(health)
	require.Contains(t, health.problem(), "don/bad")

	r.write(func(tx *state.Txn) { tx.UpsertService(r.local, service("don", "bad", true)) })
	r.round()
	require.Equal(t, []string{"don/bad"}, r.scopes[wire.Services].lastBatch())
	r.export.report(health)
	require.Empty(t, health.problem())
}

func TestLargeRoundsComeInChunks(t *testing.T) {
	r := newRig(t, Options{})
	admitted := 0
	r.export.admit = func(context.Context) error { admitted++; return nil }
	r.begin()
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		ip := netip.MustParseAddr("10.0.0.0")
		for range 2*chunk + 1 {
			ip = ip.Next()
			tx.UpsertEndpoint(r.local, owner, endpoint(ip.String(), "don", "x"))
		}
	})
	r.initializeAll()
	r.round()
	require.Len(t, r.scopes[wire.Endpoints].batches, 3)
	require.Equal(t, 2, admitted)
	require.Equal(t, 2*chunk+1, r.scopes[wire.Endpoints].Len())
}

func TestRunFollowsTheTables(t *testing.T) {
	r := newRig(t, Options{})
	r.scopes[wire.Identities].loadErr = errors.New("etcd is away")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	health := &healthRecorder{}
	var jobs sync.WaitGroup
	jobs.Go(func() { _ = r.export.run(ctx, health) })
	jobs.Go(func() { _ = r.export.awaitSync(ctx, health) })
	defer jobs.Wait()
	defer cancel()

	r.initializeAll()
	<-r.export.Synced()
	require.Equal(t, 2, r.scopes[wire.Identities].loads, "a failed load is tried again")
	require.Equal(t, 1, r.scopes[wire.Endpoints].loads)

	endpoints := r.scopes[wire.Endpoints]
	eventually := func(condition func() bool) {
		t.Helper()
		require.Eventually(t, condition, 10*time.Second, time.Millisecond)
	}
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
	})
	eventually(func() bool { return endpoints.get("10.0.0.1") != "" })
	r.write(func(tx *state.Txn) { r.namespace(tx, "don", false) })
	eventually(func() bool { return endpoints.get("10.0.0.1") == "" })
	completed := endpoints.completed()
	r.export.refills.ask(wire.Endpoints, nil)
	eventually(func() bool { return endpoints.completed() == completed+1 })
}

// healthRecorder remembers the last thing that health was told.
type healthRecorder struct {
	cell.Health
	mu  sync.Mutex
	err error
}

func (h *healthRecorder) OK(string)                    { h.set(nil) }
func (h *healthRecorder) Degraded(_ string, err error) { h.set(err) }
func (h *healthRecorder) NewScope(string) cell.Health  { return h }
func (h *healthRecorder) Stopped(string)               {}
func (h *healthRecorder) Close()                       {}
func (h *healthRecorder) set(err error)                { h.mu.Lock(); h.err = err; h.mu.Unlock() }
func (h *healthRecorder) problem() (text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		text = h.err.Error()
	}
	return text
}
