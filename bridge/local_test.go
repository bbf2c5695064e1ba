// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/endpoint"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	nodetypes "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// pods are this node's by their names. A fake, since upstream's endpoint manager takes
// what has a datapath only.
type pods map[string]*endpoint.Endpoint

func (p pods) LookupCEPName(name string) *endpoint.Endpoint { return p[name] }

// TestDelayOnce: a pod of this node counts when it first comes back, and not when it changes.
func TestDelayOnce(t *testing.T) {
	before := metrics.EndpointPropagationDelay
	t.Cleanup(func() { metrics.EndpointPropagationDelay = before })
	histogram := metric.NewHistogramVec(metric.HistogramOpts{Name: "delay"}, nil)
	metrics.EndpointPropagationDelay = histogram
	samples := func() int {
		var m dto.Metric
		collected := make(chan prometheus.Metric, 1)
		histogram.Collect(collected)
		require.NoError(t, (<-collected).Write(&m))
		return int(m.GetHistogram().GetSampleCount())
	}

	r := newRig(t, Options{Local: true, Remote: true})
	web := &endpoint.Endpoint{IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("fd00::1")}
	r.delays.local = pods{"shop/web": web}
	local := r.writer.Origin("west", 3, state.SourceLocal)
	remote := r.writer.Origin("north", 1, state.SourceClusterMesh)
	r.start(t)
	// The agent's own, which holds the address all the time.
	r.ipcache.Upsert("10.0.0.1", nil, 0, nil, ipcache.Identity{ID: 300, Source: source.Local})
	upsert := func(origin *state.Origin, e wire.Endpoint) {
		t.Helper()
		r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(origin, state.Owner{}, e) })
	}

	upsert(local, endpointAt("10.0.0.1", 300))
	require.Equal(t, 1, samples())
	upsert(local, endpointAt("fd00::1", 300)) // its other address
	upsert(local, endpointAt("10.0.0.1", 301))
	upsert(local, endpointAt("fd00::1", 301))
	require.Equal(t, 1, samples(), "it was changed")
	elsewhere := endpointAt("10.0.0.2", 300)
	elsewhere.Pod = "far"
	upsert(local, elsewhere)
	upsert(remote, endpointAt("10.0.0.3", 300))
	require.Equal(t, 1, samples(), "they aren't of this node")

	r.write(t, func(tx *state.Txn) {
		tx.DeleteEndpoint(local, state.Owner{}, endpointAt("10.0.0.1", 0).Prefix)
		tx.DeleteEndpoint(local, state.Owner{}, endpointAt("fd00::1", 0).Prefix)
	})
	upsert(local, endpointAt("10.0.0.1", 300))
	require.Equal(t, 2, samples(), "it is new")
}

// notices records what listeners are told of.
type notices struct {
	mu     sync.Mutex
	events []notice
}

type notice struct {
	kind ipcache.CacheModification
	id   identity.NumericIdentity
}

func (l *notices) OnIPIdentityCacheChange(kind ipcache.CacheModification, _ cmtypes.PrefixCluster, _, _ net.IP,
	_ *ipcache.Identity, now ipcache.Identity, _ uint8, _ *ipcache.K8sMetadata, _ uint8) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, notice{kind, now.ID})
}

func (l *notices) take() []notice {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.events
	l.events = nil
	return events
}

// TestHandOver has an address go from this cluster to a remote one: the datapath's map is
// told of the new entry and of nothing in between.
func TestHandOver(t *testing.T) {
	r := newRig(t, Options{Local: true, Remote: true})
	local := r.writer.Origin("west", 3, state.SourceLocal)
	remote := r.writer.Origin("north", 1, state.SourceClusterMesh)
	r.start(t)
	listener := &notices{}
	r.ipcache.AddListener(listener)
	const address = "10.0.0.1"
	prefix := endpointAt(address, 0).Prefix
	toRemote := func(before, after identity.NumericIdentity) {
		t.Helper()
		r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(local, state.Owner{}, endpointAt(address, before.Uint32())) })
		r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(remote, state.Owner{}, endpointAt(address, after.Uint32())) })
		listener.take()
		r.write(t, func(tx *state.Txn) { tx.DeleteEndpoint(local, state.Owner{}, prefix) })
		got, _ := r.ipcache.LookupByIP(address)
		require.Equal(t, after, got.ID)
		require.Equal(t, source.ClusterMesh, got.Source)
		require.Equal(t, &ipcache.K8sMetadata{Namespace: "shop", PodName: "web"}, r.ipcache.GetK8sMetadata(prefix.Addr()))
		require.Zero(t, r.listener.contested())
		require.Equal(t, 1, r.listener.size())
	}
	toRemote(300, 70001)
	require.Equal(t, []notice{{ipcache.Upsert, 70001}}, listener.take())
	_, found := r.ipcache.LookupByIP(prefix.String())
	require.False(t, found, "what stood in is still there")

	// And it goes, as any.
	r.write(t, func(tx *state.Txn) { tx.DeleteEndpoint(remote, state.Owner{}, prefix) })
	require.Equal(t, []notice{{ipcache.Delete, 70001}}, listener.take())
	require.Zero(t, r.listener.size())

	// A CIDR that is a policy's, of that length, stays; the map is never without an entry.
	r.ipcache.Upsert(prefix.String(), nil, 0, nil, ipcache.Identity{ID: identity.IdentityScopeLocal + 1, Source: source.Generated})
	toRemote(300, 70002)
	events := listener.take()
	require.Equal(t, notice{ipcache.Upsert, 70002}, events[len(events)-1])
	require.False(t, slices.ContainsFunc(events, func(e notice) bool { return e.kind == ipcache.Delete }))
	_, found = r.ipcache.LookupByIP(prefix.String())
	require.True(t, found)
}

// nodesTold is upstream's node manager, of which a real one needs a datapath.
type nodesTold struct {
	mu     sync.Mutex
	synced []int
	count  int
}

func (n *nodesTold) NodeUpdated(nodetypes.Node) { n.mu.Lock(); n.count++; n.mu.Unlock() }
func (n *nodesTold) NodeDeleted(nodetypes.Node) { n.mu.Lock(); n.count--; n.mu.Unlock() }
func (n *nodesTold) NodeSync() {
	n.mu.Lock()
	n.synced = append(n.synced, n.count)
	n.mu.Unlock()
}

// TestLocalIsComplete: what waits for this cluster waits neither shorter nor longer, with a
// remote one that never comes.
func TestLocalIsComplete(t *testing.T) {
	r := newRig(t, Options{Local: true, Remote: true})
	complete := r.writer.RegisterInitializer(ingest.LocalInitializer, wire.CacheResources...)
	r.writer.RegisterInitializer("clustermesh", wire.Resources...)
	local := r.writer.Origin("west", 3, state.SourceLocal)
	manager := &nodesTold{}
	n := newNodes(r.db, r.writer, manager)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	ended := make(chan error)
	_, health := cell.NewSimpleHealth()
	go func() { ended <- n.run(ctx, health) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	r.start(t)
	r.write(t, func(tx *state.Txn) {
		tx.UpsertEndpoint(local, state.Owner{}, endpointAt("10.0.0.1", 300))
		tx.UpsertNode(local, wire.Node{Cluster: "west", Name: "two"})
	})
	for _, synced := range []chan struct{}{r.synced, n.synced} {
		select {
		case <-synced:
			t.Fatal("this cluster isn't complete")
		default:
		}
	}
	r.write(t, complete)
	require.NoError(t, r.waitSynced(ctx))
	require.NoError(t, n.waitSynced(ctx))
	for _, table := range []statedb.TableMeta{r.table, n.table} {
		initialized, _ := table.Initialized(r.db.ReadTxn())
		require.False(t, initialized)
	}
	require.Equal(t, []int{1}, manager.synced)
	got, _ := r.ipcache.LookupByIP("10.0.0.1")
	require.EqualValues(t, 300, got.ID)
}

// TestClosedViewBeginsNothing: ClusterMesh may ask a view that it closes, as its own
// restarts fall together.
func TestClosedViewBeginsNothing(t *testing.T) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	for range 100 {
		v := &view{of: &clusters{db: db, tables: writer.Tables()}, cluster: "north"}
		v.ctx, v.close = context.WithCancel(t.Context())
		var asks sync.WaitGroup
		for range 4 {
			asks.Go(func() {
				for range v.ListAndWatch(t.Context(), wire.SyncedPrefix("north")) {
				}
			})
		}
		v.Close()
		asks.Wait()
	}
}
