// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	"github.com/cilium/cilium/pkg/k8s/resource"
	k8stypes "github.com/cilium/cilium/pkg/k8s/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

const patience = 2 * time.Minute

// startStandins runs the stand-ins on tables that a test fills.
func startStandins(t *testing.T) (*tables, *standins) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	s := &tables{}
	var stands *standins
	h := hive.New(cell.Module("test", "Test",
		state.Cell,
		cell.Provide(
			func() inclustercache.DatastoreConfig {
				return inclustercache.DatastoreConfig{Datastore: inclustercache.DatastoreEtcd}
			},
			func() wire.ClusterInfo { return wire.ClusterInfo{Name: "west", ID: 2} },
			newStandins,
		),
		cell.Invoke(func(db *statedb.DB, writer *state.Writer, made *standins) {
			s.db, s.writer = db, writer
			s.local = writer.Origin("west", 2, state.SourceLocal)
			s.remote = writer.Origin("north", 1, state.SourceClusterMesh)
			s.complete = writer.RegisterInitializer(ingest.LocalInitializer, wire.CacheResources...)
			stands = made
		}),
	))
	log := hivetest.Logger(t)
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
	return s, stands
}

// take reads an event, and says it as text.
func take[T runtime.Object](t *testing.T, events <-chan resource.Event[T]) string {
	t.Helper()
	select {
	case event := <-events:
		event.Done(nil)
		return fmt.Sprintf("%s %s", event.Kind, event.Key)
	case <-time.After(patience):
		require.FailNow(t, "no event came")
		return ""
	}
}

// TestEvents is upstream's contract of events, of which the machinery is upstream's.
func TestEvents(t *testing.T) {
	s, stands := startStandins(t)
	endpoints, slices, nodes := stands.endpoints.Events(t.Context()), stands.slices.Events(t.Context()), stands.nodes.Events(t.Context())
	bee := endpoint("bee", "10.244.1.1", "10.0.0.1")
	s.commit(s.upsert(s.local, bee), func(tx *state.Txn) {
		tx.UpsertNode(s.local, wire.Node{Name: "one", Cluster: "west", ClusterID: 2})
	})
	// What there is isn't told while it may be a part.
	select {
	case event := <-endpoints:
		event.Done(nil)
		require.FailNow(t, "it was told before it was complete", "%v", event)
	default:
	}
	s.commit(s.complete)
	require.Equal(t, "upsert meadow/bee", take(t, endpoints))
	require.Equal(t, "sync ", take(t, endpoints))
	require.Equal(t, "upsert meadow.bee", take(t, slices))
	require.Equal(t, "sync ", take(t, slices))
	require.Equal(t, "upsert one", take(t, nodes))
	require.Equal(t, "sync ", take(t, nodes))

	s.commit(s.remove(s.local, bee), func(tx *state.Txn) { tx.DeleteNode(s.local, "west", "one") })
	require.Equal(t, "delete meadow/bee", take(t, endpoints))
	require.Equal(t, "delete meadow.bee", take(t, slices))
	require.Equal(t, "delete one", take(t, nodes))
}

// TestStore is what upstream asks of a store, of endpoints and of slices.
func TestStore(t *testing.T) {
	s, stands := startStandins(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := stands.endpoints.Store(ctx)
	require.ErrorIs(t, err, context.Canceled, "there is no store before all is there")

	here, there := "10.0.0.1", "10.0.0.2"
	s.commit(s.complete, s.upsert(s.local, endpoint("bee", "10.244.1.1", here)), s.upsert(s.local, endpoint("bee", "f00d::1", here)),
		s.upsert(s.local, endpoint("wasp", "10.244.2.1", there)), s.upsert(s.remote, endpoint("far", "10.9.0.1", here)))
	store, err := stands.endpoints.Store(t.Context())
	require.NoError(t, err)
	sliceStore, err := stands.slices.Store(t.Context())
	require.NoError(t, err)

	require.Len(t, store.List(), 2)
	bee, ok, err := store.GetByKey(resource.Key{Namespace: "meadow", Name: "bee"})
	require.NoError(t, err)
	require.True(t, ok)
	want := newEndpoint("meadow", "bee")
	want.Identity = &ciliumv2.EndpointIdentity{ID: 131500}
	want.Networking = &ciliumv2.EndpointNetworking{NodeIP: here, Addressing: ciliumv2.AddressPairList{{IPV4: "10.244.1.1"}, {IPV6: "f00d::1"}}}
	require.Equal(t, want.Identity, bee.Identity)
	require.Equal(t, want.Networking, bee.Networking)
	require.Equal(t, "web", bee.NamedPorts[0].Name)
	_, ok, err = store.Get(newEndpoint("meadow", "hornet"))
	require.NoError(t, err)
	require.False(t, ok)
	slice, ok, err := sliceStore.GetByKey(resource.Key{Name: "meadow.bee"})
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "meadow", slice.Namespace)
	require.Equal(t, "bee", slice.Endpoints[0].Name)
	require.Len(t, store.CacheStore().ListKeys(), 2)
	require.Equal(t, []string{"meadow/bee", "meadow/wasp"}, keysOf(store))
	require.Equal(t, []string{"meadow.bee", "meadow.wasp"}, keysOf(sliceStore))

	_, err = store.ByIndex("node", here)
	require.ErrorIs(t, err, errNoIndex)
	require.Equal(t, []string{"meadow/bee"}, onNode(t, store, here))
	require.Equal(t, []string{"meadow.bee"}, onNode(t, sliceStore, here))
	require.Empty(t, onNode(t, store, "no address"))

	// It follows: one that comes, one that goes to another node, one that goes.
	s.commit(s.upsert(s.local, endpoint("hornet", "10.244.1.2", here)))
	require.Eventually(t, func() bool { return len(onNode(t, store, here)) == 2 }, patience, time.Millisecond)
	s.commit(s.upsert(s.local, endpoint("hornet", "10.244.1.2", there)))
	require.Eventually(t, func() bool { return len(onNode(t, store, here)) == 1 }, patience, time.Millisecond)
	s.commit(s.remove(s.local, endpoint("bee", "10.244.1.1", here)), s.remove(s.local, endpoint("bee", "f00d::1", here)))
	require.Eventually(t, func() bool { return len(onNode(t, store, here)) == 0 }, patience, time.Millisecond)
}

func keysOf[T runtime.Object](store resource.Store[T]) (keys []string) {
	for iter := store.IterKeys(); iter.Next(); {
		keys = append(keys, iter.Key().String())
	}
	slices.Sort(keys)
	return keys
}

// onNode are the keys of a node's endpoints, after a look at the objects.
func onNode[T runtime.Object](t *testing.T, store resource.Store[T], node string) []string {
	keys, err := store.IndexKeys(localNodeIndex, node)
	require.NoError(t, err)
	_, err = store.ByIndex(localNodeIndex, node)
	require.NoError(t, err)
	return keys
}

// TestPositions is that a watch goes on from the last list, and from nothing else.
func TestPositions(t *testing.T) {
	s, stands := startStandins(t)
	s.commit(s.complete)
	served := stands.serve(newIdentities(hivetest.Logger(t), s.db, s.writer))

	_, err := served.Watch(metav1.ListOptions{ResourceVersion: "1"})
	require.True(t, k8serrors.IsResourceExpired(err), "%v", err)
	_, err = served.Watch(metav1.ListOptions{SendInitialEvents: ptr.To(true)})
	require.True(t, k8serrors.IsInvalid(err), "%v", err)
	_, first, err := served.list(t.Context())
	require.NoError(t, err)
	_, second, err := served.list(t.Context())
	require.NoError(t, err)
	_, err = served.Watch(metav1.ListOptions{ResourceVersion: first})
	require.True(t, k8serrors.IsResourceExpired(err), "%v", err)

	// Between list and watch nothing is lost, deletions least of all.
	s.commit(s.upsertIdentity(131500, "k8s:app=a;"))
	watching, err := served.Watch(metav1.ListOptions{ResourceVersion: second})
	require.NoError(t, err)
	event := <-watching.ResultChan()
	require.Equal(t, "131500", event.Object.(*ciliumv2.CiliumIdentity).Name)
	_, err = served.Watch(metav1.ListOptions{ResourceVersion: second})
	require.True(t, k8serrors.IsResourceExpired(err), "it is taken: %v", err)
	watching.Stop()
	for range watching.ResultChan() {
	}
}

var (
	_ resource.Store[*k8stypes.CiliumEndpoint]            = &endpointStore[*k8stypes.CiliumEndpoint]{}
	_ resource.Store[*ciliumv2alpha1.CiliumEndpointSlice] = &endpointStore[*ciliumv2alpha1.CiliumEndpointSlice]{}
)
