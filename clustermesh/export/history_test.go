// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// patience is how long a test waits for what must come about.
const patience = 2 * time.Minute

// flags are those of an exporter that decide what leaves the cluster.
type flags struct {
	mode          filter.SyncMode
	region        string
	defaultGlobal bool
}

func (f flags) filters() filters {
	policy := filter.NamespacePolicy{DefaultGlobal: f.defaultGlobal}
	return filters{
		namespace: func(ns *state.Namespace) bool { return policy.Global(ns.Annotations) },
		workload:  filter.WorkloadPolicy{Mode: f.mode}, region: f.region,
	}
}

// span is a part of an etcd's history; until is 0 while it goes on.
type span struct{ from, until int64 }

func within(spans []span, revision int64) bool {
	for _, s := range spans {
		if revision > s.from && (s.until == 0 || revision <= s.until) {
			return true
		}
	}
	return false
}

// world is one set of tables, an etcd, and the exporters that come and go between
// them. It knows when in the etcd's history a key could be missing.
type world struct {
	t rapid.TB
	// client is the test's own, and through that of the exporters.
	client, through *etcd.Client
	// late are the tables that aren't initialized, and heartbeat has a heartbeat
	// written beside each exporter.
	late      []func(*state.Txn)
	heartbeat bool

	db      *statedb.DB
	tables  *state.Writer
	local   *state.Origin
	flags   flags
	marked  int64 // the last marker, see settle
	stop    func()
	export  *Exporter
	writer  *etcd.Writer
	begin   int64             // the revision from which on the history counts
	absent  map[string][]span // by the key of an endpoint: it isn't to be exported
	unknown map[string][]span // by the key of an identity: likewise
}

func quietly() *slog.Logger { return slog.New(slog.DiscardHandler) }

func startServer(t require.TestingT, url string) (*etcd.Server, func()) {
	dir, err := os.MkdirTemp("", "export")
	require.NoError(t, err)
	server, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: dir, ListenURL: url})
	require.NoError(t, err)
	return server, func() { server.Close(); _ = os.RemoveAll(dir) }
}

// emptyWorld is one of empty tables.
func emptyWorld(t rapid.TB) *world {
	w := &world{t: t, db: statedb.New()}
	var err error
	w.tables, err = state.NewWriter(w.db)
	require.NoError(t, err)
	w.local = w.tables.Origin(localName, localID, state.SourceLocal)
	return w
}

// newWorld makes a world with an etcd that is empty, and an exporter that runs.
func newWorld(t rapid.TB, client *etcd.Client, f flags) *world {
	w := idleWorld(t, client, client)
	w.start(f)
	return w
}

// idleWorld is one in which no exporter runs yet.
func idleWorld(t rapid.TB, client, through *etcd.Client) *world {
	w := emptyWorld(t)
	w.client, w.through, w.absent, w.unknown = client, through, map[string][]span{}, map[string][]span{}
	_, err := client.Etcd().Delete(context.Background(), "cilium/", clientv3.WithPrefix())
	require.NoError(t, err)
	w.begin = w.revision()
	for _, id := range someIdentities {
		w.unknown[wire.IdentityKey(id)] = []span{{from: w.begin}}
	}
	return w
}

// delay has tables that aren't initialized until initialize.
func (w *world) delay(tables ...wire.Resource) {
	for _, table := range tables {
		w.late = append(w.late, w.tables.RegisterInitializer("test", table))
	}
}

// initialize initializes so many of the tables that aren't.
func (w *world) initialize(tables int) {
	w.write(func(tx *state.Txn) {
		for _, done := range w.late[:tables] {
			done(tx)
		}
	})
	w.late = w.late[tables:]
}

// start starts an exporter with these flags.
func (w *world) start(f flags) {
	w.flags = f
	if w.heartbeat { // so that one is this process's
		_, err := w.client.Etcd().Delete(context.Background(), wire.HeartbeatKey)
		require.NoError(w.t, err)
	}
	before := w.revision()
	ctx, cancel := context.WithCancel(context.Background())
	writing, stopWriting := context.WithCancel(context.Background())
	w.writer = etcd.NewWriter(quietly(), w.through)
	export := newExporter(quietly(), w.db, w.tables.Tables(), localName, Options{}, f.filters(), newScopes(w.writer, localName))
	export.admit = w.writer.Admit
	w.export = export
	var exporting, writes sync.WaitGroup
	writes.Go(func() { _ = w.writer.Run(writing) })
	exporting.Go(func() { _ = export.run(ctx, &healthRecorder{}) })
	if heartbeat := NewHeartbeat(w.writer); w.heartbeat {
		exporting.Go(func() { _ = heartbeat.run(ctx, &healthRecorder{}) })
	}
	w.stop = func() {
		// What is on its way to etcd arrives: a commit that is made after its
		// process's end is nobody's fault.
		cancel()
		exporting.Wait()
		w.await("the last commit", func() bool { return w.writer.Stats().Pending == 0 })
		stopWriting()
		writes.Wait()
	}
	w.exempt(before)
}

func (w *world) await(what string, condition func() bool) {
	look := func(context.Context) (bool, error) { return condition(), nil }
	if err := wait.PollUntilContextTimeout(context.Background(), time.Millisecond, patience, true, look); err != nil {
		w.t.Fatalf("waiting for %s", what)
	}
}

func (w *world) revision() int64 {
	resp, err := w.client.Etcd().Get(context.Background(), "cilium/")
	require.NoError(w.t, err)
	return resp.Header.Revision
}

// global says whether objects in a namespace leave the cluster.
func (w *world) global(txn statedb.ReadTxn, namespace string) bool {
	ns, _, found := w.tables.Tables().Namespaces.Get(txn, state.NamespaceByName(namespace))
	return found && w.flags.filters().namespace(ns)
}

// mayBeAbsent says whether there may be no key of an endpoint.
func (w *world) mayBeAbsent(txn statedb.ReadTxn, key string) bool {
	prefix, err := wire.ParseEndpointKey(key)
	require.NoError(w.t, err)
	row, _, found := w.tables.Tables().Endpoints.Get(txn, state.EndpointByPrefix(prefix))
	return !found || !w.global(txn, row.Namespace())
}

// mayBeUnknown says whether an endpoint may be pushed without this identity: where it
// isn't in the tables, and, where everything is pushed, while its namespace changes.
func (w *world) mayBeUnknown(txn statedb.ReadTxn, key string) bool {
	id, err := wire.ParseIdentityKey(key)
	require.NoError(w.t, err)
	row, _, found := w.tables.Tables().Identities.Get(txn, state.IdentityByID(id))
	if !found {
		return true
	}
	namespace, _ := wire.Label(row.Labels, wire.LabelNamespace)
	return w.flags.mode == filter.SyncAll && !w.global(txn, namespace)
}

// exempt begins the spans of what may be missing from now on, when etcd was at the
// given revision before that.
func (w *world) exempt(before int64) {
	txn := w.tables.ReadTxn()
	open := func(spans map[string][]span, key string, missing bool) {
		if n := len(spans[key]); missing && (n == 0 || spans[key][n-1].until != 0) {
			spans[key] = append(spans[key], span{from: before})
		}
	}
	for _, key := range someEndpoints() {
		open(w.absent, key, w.mayBeAbsent(txn, key))
	}
	for _, id := range someIdentities {
		open(w.unknown, wire.IdentityKey(id), w.mayBeUnknown(txn, wire.IdentityKey(id)))
	}
}

// write changes the tables.
func (w *world) write(fn func(*state.Txn)) {
	before := w.revision()
	tx := w.tables.Begin()
	defer tx.Abort() // rapid gives up a run by a panic
	fn(tx)
	tx.Commit()
	w.exempt(before)
}

// fresh is what a new exporter writes to an empty etcd.
func (w *world) fresh() map[string]string {
	scopes := map[string]*recorder{}
	export := newExporter(quietly(), w.db, w.tables.Tables(), localName, Options{}, w.flags.filters(),
		func(name placeName, _ func([]string)) scope {
			scopes[prefixOf(name)] = newRecorder()
			return scopes[prefixOf(name)]
		})
	changes, err := export.follow()
	require.NoError(w.t, err)
	for range 3 {
		require.NoError(w.t, export.round(context.Background(), changes, statedb.NewWatchSet()))
	}
	keys := map[string]string{}
	for prefix, s := range scopes {
		for key, value := range s.keys {
			keys[prefix+key] = value
		}
	}
	return keys
}

func prefixOf(name placeName) string {
	if name.onDemand {
		return onDemandPrefix(name.resource)
	}
	return wire.StatePrefix(name.resource, localName)
}

func (w *world) content(prefix string) map[string]string {
	resp, err := w.client.Etcd().Get(context.Background(), prefix, clientv3.WithPrefix())
	keys := map[string]string{}
	if err != nil {
		return keys // it is away, and asked again
	}
	for _, kv := range resp.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

// settle waits until etcd has what a fresh exporter would write, and closes the
// spans of what is there now.
func (w *world) settle() {
	w.initialize(len(w.late))
	// The exporter may be about to apply what was in the tables before: then it
	// looks as it should, and changes. What the last follower writes says that it
	// has seen all.
	w.marked++
	marker := serviceExport("marker", "marker")
	marker.ExportCreationTimestamp = metav1.Unix(w.marked, 0)
	w.write(func(tx *state.Txn) {
		tx.UpsertNamespace(state.Namespace{Name: "marker", Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "true"}})
		tx.UpsertServiceExport(w.local, marker)
	})
	want := w.fresh()
	at := wire.StatePrefix(wire.ServiceExports, localName) + "marker/marker"
	w.await("the exporter", func() bool { return w.content(at)[at] == want[at] })
	var got map[string]string
	same := func(context.Context) (bool, error) {
		committed := w.writer.Stats().Pending == 0
		got = w.content(wire.StateRoot)
		return committed && maps.Equal(got, want), nil
	}
	if err := wait.PollUntilContextTimeout(context.Background(), time.Millisecond, patience, true, same); err != nil {
		require.Equal(w.t, want, got)
		w.t.Fatal("what there is isn't committed")
	}
	w.await("canaries", func() bool { return len(w.content(wire.SyncedRoot)) == 5 })
	now, txn := w.revision(), w.tables.ReadTxn()
	settled := func(spans map[string][]span, mayMiss func(statedb.ReadTxn, string) bool) {
		for key := range spans {
			if last := &spans[key][len(spans[key])-1]; last.until == 0 && !mayMiss(txn, key) {
				last.until = now
			}
		}
	}
	settled(w.absent, w.mayBeAbsent)
	settled(w.unknown, w.mayBeUnknown)
}

// check goes through the etcd's history, revision by revision.
func (w *world) check() {
	const witness = wire.StateRoot + "witness"
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := w.client.Etcd().Put(ctx, witness, "")
	require.NoError(w.t, err)
	defer func() {
		_, err := w.client.Etcd().Delete(ctx, witness)
		require.NoError(w.t, err)
	}()
	keys := map[string]string{}
	var events []*clientv3.Event
	for resp := range w.client.Etcd().Watch(ctx, wire.StateRoot, clientv3.WithPrefix(), clientv3.WithRev(w.begin+1)) {
		require.NoError(w.t, resp.Err())
		for _, event := range resp.Events {
			if string(event.Kv.Key) == witness && event.IsCreate() && event.Kv.ModRevision >= w.begin {
				w.checkRevision(keys, events)
				return
			}
			if len(events) > 0 && events[0].Kv.ModRevision != event.Kv.ModRevision {
				w.checkRevision(keys, events)
				events = events[:0]
			}
			events = append(events, event)
		}
	}
	w.t.Fatal("the history ended early")
}

// checkRevision applies the events of one revision, and checks what there is then.
func (w *world) checkRevision(keys map[string]string, events []*clientv3.Event) {
	if len(events) == 0 {
		return
	}
	revision := events[0].Kv.ModRevision
	for _, event := range events {
		if event.Type == clientv3.EventTypeDelete {
			delete(keys, string(event.Kv.Key))
		} else {
			keys[string(event.Kv.Key)] = string(event.Kv.Value)
		}
	}
	pushed := wire.StatePrefix(wire.Endpoints, localName)
	for _, event := range events {
		key, ok := strings.CutPrefix(string(event.Kv.Key), pushed)
		if !ok {
			key, ok = strings.CutPrefix(string(event.Kv.Key), wire.OnDemandEndpointPrefix)
		}
		if !ok || event.Type != clientv3.EventTypeDelete {
			continue
		}
		_, here := keys[pushed+key]
		_, there := keys[wire.OnDemandEndpointPrefix+key]
		if !here && !there && !within(w.absent[key], revision) {
			w.t.Fatalf("revision %d: endpoint %s is in neither place; it may be missing in %v", revision, key, w.absent[key])
		}
	}
	for key, value := range keys {
		key, ok := strings.CutPrefix(key, pushed)
		if !ok {
			continue
		}
		ep, err := wire.DecodeEndpoint(key, []byte(value), func(b []byte) string { return string(b) })
		require.NoError(w.t, err)
		id := wire.IdentityKey(ep.Identity)
		if _, ok := keys[wire.StatePrefix(wire.Identities, localName)+id]; !ok && !within(w.unknown[id], revision) {
			w.t.Fatalf("revision %d: endpoint %s is pushed and its identity %s isn't; it may be missing in %v",
				revision, key, id, w.unknown[id])
		}
	}
}

var (
	someNamespaces = []string{"a", "b", "c"}
	somePods       = []string{"w", "x", "y", "z"}
	someIdentities = []uint32{200000, 200001, 200002, 200010, 200011, 200012, 200020, 200021, 200022}
)

// address is that of a pod. Some pods have the same one, which they claim at times.
func address(namespace, pod int, ipv6, shared bool) netip.Addr {
	if shared {
		namespace, pod = 0, 0
	}
	if ipv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%d:%d", namespace, pod))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", namespace, pod))
}

func someEndpoints() (keys []string) {
	for ns := range someNamespaces {
		for pod := range somePods {
			for _, ipv6 := range []bool{false, true} {
				keys = append(keys, wire.EndpointKey(state.PrefixOf(address(ns, pod, ipv6, false))))
			}
		}
	}
	return keys
}

// change draws one change of the tables.
func (w *world) change(t *rapid.T, tx *state.Txn) {
	ns := rapid.IntRange(0, len(someNamespaces)-1).Draw(t, "namespace")
	pod := rapid.IntRange(0, len(somePods)-1).Draw(t, "pod")
	namespace, name := someNamespaces[ns], somePods[pod]
	owner := state.Owner{Object: "endpoint/" + namespace + "/" + name}
	prefix := func(ipv6, shared bool) netip.Prefix { return state.PrefixOf(address(ns, pod, ipv6, shared)) }
	switch rapid.SampledFrom([]string{"says", "says", "says", "endpoint", "endpoint", "no endpoint", "namespace", "identity", "no identity"}).Draw(t, "change") {
	case "says":
		value := func(values ...string) map[string]string {
			settings := map[string]string{}
			if sync := rapid.SampledFrom([]string{"", "true", "true", "false", "malformed"}).Draw(t, "sync"); sync != "" {
				settings[filter.SyncKey] = sync
			}
			if scope := rapid.SampledFrom(values).Draw(t, "scope"); scope != "" {
				settings[filter.ScopeKey] = scope
			}
			return settings
		}
		says := filter.ParseWorkload(value(""), value("", "regional", "malformed"))
		if says.IsZero() && rapid.Bool().Draw(t, "gone") {
			tx.ReleaseWorkload(namespace, name)
		} else if says.IsZero() {
			tx.DeleteWorkload(namespace, name)
		} else {
			tx.UpsertWorkload(state.Workload{Namespace: namespace, Pod: name, Workload: says})
		}
	case "endpoint":
		identity := 200000 + uint32(10*ns+rapid.IntRange(0, 2).Draw(t, "identity"))
		shared := rapid.IntRange(0, 5).Draw(t, "shared") == 0
		for _, ipv6 := range rapid.SampledFrom([][]bool{{false}, {true}, {false, true}}).Draw(t, "families") {
			tx.UpsertEndpoint(w.local, owner, wire.Endpoint{
				Prefix: prefix(ipv6, shared), HostIP: netip.MustParseAddr("172.18.0.2"),
				Identity: identity, Namespace: namespace, Pod: name,
			})
		}
	case "no endpoint":
		for _, ipv6 := range []bool{false, true} {
			tx.DeleteEndpoint(w.local, owner, prefix(ipv6, false))
			tx.DeleteEndpoint(w.local, owner, prefix(ipv6, true))
		}
	case "namespace":
		switch value := rapid.SampledFrom([]string{"gone", "", "true", "true", "false"}).Draw(t, "global"); value {
		case "gone":
			tx.DeleteNamespace(namespace)
		case "":
			tx.UpsertNamespace(state.Namespace{Name: namespace})
		default:
			tx.UpsertNamespace(state.Namespace{Name: namespace, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: value}})
		}
	case "identity":
		id := rapid.SampledFrom(someIdentities).Draw(t, "id")
		tx.UpsertIdentity(w.local, wire.Identity{ID: id, Labels: fmt.Sprintf("k8s:app=%d;k8s:%s=%s;",
			rapid.IntRange(0, 3).Draw(t, "label"), wire.LabelNamespace, someNamespaces[(id-200000)/10])})
	case "no identity":
		tx.DeleteIdentity(w.local, rapid.SampledFrom(someIdentities).Draw(t, "id"))
	}
}

func drawFlags(t *rapid.T) flags {
	return flags{
		mode:          rapid.SampledFrom([]filter.SyncMode{filter.SyncOptIn, filter.SyncOptIn, filter.SyncAll}).Draw(t, "mode"),
		region:        rapid.SampledFrom([]string{"", "eu"}).Draw(t, "region"),
		defaultGlobal: rapid.IntRange(0, 3).Draw(t, "default") > 0,
	}
}

// TestEveryRevisionIsSound has pods, endpoints, identities and namespaces change at
// random, faster than the exporter writes, and exporters restarted with other flags.
// Whenever all has settled etcd holds what a fresh start gives; and at no revision of
// its history is an endpoint that moves in neither place, or pushed without an
// identity that is known.
func TestEveryRevisionIsSound(t *testing.T) {
	server, stop := startServer(t, "http://127.0.0.1:0")
	defer stop()
	// Commits of so few operations that each order of operations is one of revisions.
	options := etcd.DefaultOptions
	options.QPS, options.MaxTxnOps, options.MaxInflight = 100_000, 2, 1
	client, err := etcd.NewClient(quietly(), etcd.ClientConfig{Endpoints: []string{server.URL()}, LeaseTTL: time.Hour, Options: options})
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()

	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, client, drawFlags(t))
		defer func() { w.stop() }()
		w.populate()
		w.settle()
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "step") {
			case 0:
				w.stop()
				w.start(drawFlags(t))
			case 1, 2:
				w.settle()
			case 3, 4:
				before := w.writer.Stats().Commits
				w.await("a commit", func() bool {
					stats := w.writer.Stats()
					return stats.Commits > before || stats.Pending == 0
				})
			default:
				changes := rapid.IntRange(1, 6).Draw(t, "changes")
				w.write(func(tx *state.Txn) {
					for range changes {
						w.change(t, tx)
					}
				})
			}
		}
		w.settle()
		w.check()
	})
}
