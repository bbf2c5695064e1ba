// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
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
	refills  uint64
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

func (r *recorder) CompleteAfter(refills uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if refills != r.refills {
		return false
	}
	r.complete++
	r.told <- struct{}{}
	return true
}

// All that is applied is committed at once.
func (r *recorder) Await(func()) bool                   { return false }
func (r *recorder) AwaitKey(string, func()) bool        { return false }
func (r *recorder) AwaitComplete(context.Context) error { return nil }
func (r *recorder) IsComplete() bool                    { return r.completed() > 0 }

func (r *recorder) Holds(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.keys[key]
	return ok
}

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

// list is the keys, in order.
func (r *recorder) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(r.keys)), " ")
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
	scopes  map[wire.Resource]*recorder // of what is pushed
	lookups map[wire.Resource]*recorder // and of what is on demand
	export  *Exporter
	changes statedb.ChangeIterator[*state.Namespace]
}

func newRig(t testing.TB, options Options) *rig { return newRigOf(t, options, filter.SyncAll, "") }

func newRigOf(t testing.TB, options Options, mode filter.SyncMode, region string) *rig {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	r := &rig{
		t:      t,
		writer: writer,
		local:  writer.Origin(localName, localID, state.SourceLocal),
		remote: writer.Origin("theirs", 4, state.SourceClusterMesh),
		done:   map[wire.Resource]func(*state.Txn){},
		scopes: map[wire.Resource]*recorder{}, lookups: map[wire.Resource]*recorder{},
	}
	for _, resource := range []wire.Resource{wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports, state.Namespaces, state.Workloads} {
		r.done[resource] = writer.RegisterInitializer("test", resource)
	}
	by := filters{namespace: globalUnlessFalse, workload: filter.WorkloadPolicy{Mode: mode}, region: region}
	r.export = newExporter(hivetest.Logger(t), db, writer.Tables(), localName, options, by,
		func(name placeName, _ func([]string)) scope {
			recorder := newRecorder()
			if name.onDemand {
				r.lookups[name.resource] = recorder
			} else {
				r.scopes[name.resource] = recorder
			}
			return recorder
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

// lose has etcd lose keys (nil: all) of a place, and the exporter asked for them.
func (r *rig) lose(name placeName, keys []string) {
	recorder := r.scopes[name.resource]
	if name.onDemand {
		recorder = r.lookups[name.resource]
	}
	recorder.mu.Lock()
	recorder.refills++
	for _, key := range keys {
		delete(recorder.keys, key)
	}
	if keys == nil {
		clear(recorder.keys)
	}
	recorder.mu.Unlock()
	r.export.inbox.refill(name, keys)
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
	r.initialize(state.Namespaces, state.Workloads, wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports)
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

// healthRecorder remembers what health was told.
type healthRecorder struct {
	cell.Health
	mu    sync.Mutex
	texts []string
	err   error // of the last one
}

func (h *healthRecorder) OK(text string)                  { h.set(text, nil) }
func (h *healthRecorder) Degraded(text string, err error) { h.set(text, err) }
func (h *healthRecorder) NewScope(string) cell.Health     { return h }
func (h *healthRecorder) Stopped(string)                  {}
func (h *healthRecorder) Close()                          {}
func (h *healthRecorder) set(text string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.texts, h.err = append(h.texts, text), err
}
func (h *healthRecorder) said() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.texts)
}
func (h *healthRecorder) problem() (text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		text = h.err.Error()
	}
	return text
}
