// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// told is what a feed has to tell, as text.
func told(t *testing.T, s *tables, f feed) (lines []string) {
	events, _ := f.next(s.db.ReadTxn())
	for _, event := range events {
		object, err := meta.Accessor(event.Object)
		require.NoError(t, err)
		lines = append(lines, fmt.Sprintf("%s %s", event.Type, object.GetName()))
	}
	return lines
}

// TestEndpointFeed is that rows become endpoints of pods, whichever rows they are.
func TestEndpointFeed(t *testing.T) {
	s := newTables(t)
	source := endpointRows(s.db, s.writer, ciliumEndpoints)
	feed, err := source.open()
	require.NoError(t, err)
	require.Empty(t, told(t, s, feed))

	bee4, bee6 := endpoint("bee", "10.244.1.1", "10.0.0.1"), endpoint("bee", "f00d::1", "10.0.0.1")
	s.commit(s.upsert(s.local, bee4), s.upsert(s.local, bee6), s.upsert(s.remote, endpoint("far", "10.9.0.1", "10.9.9.9")))
	require.Equal(t, []string{"ADDED bee"}, told(t, s, feed), "one for all addresses, none that is remote")
	s.commit(s.remove(s.local, bee6))
	require.Equal(t, []string{"MODIFIED bee"}, told(t, s, feed))

	// An address that is given to another pod in one change.
	s.commit(s.upsert(s.local, endpoint("wasp", "10.244.1.1", "10.0.0.1")))
	require.Equal(t, []string{"DELETED bee", "ADDED wasp"}, told(t, s, feed))
	s.commit(s.upsert(s.local, bee4), s.upsert(s.local, endpoint("wasp", "10.244.1.2", "10.0.0.1")))
	require.Equal(t, []string{"MODIFIED wasp", "ADDED bee"}, told(t, s, feed))
	s.commit(s.remove(s.local, bee4))
	require.Equal(t, []string{"DELETED bee"}, told(t, s, feed))
	s.commit(s.upsert(s.local, bee4))
	s.commit(s.remove(s.local, bee4))
	require.Empty(t, told(t, s, feed), "it came and went unseen")

	another, err := source.open()
	require.NoError(t, err)
	require.Equal(t, []string{"ADDED wasp"}, told(t, s, another))
}

func TestNodeFeed(t *testing.T) {
	s := newTables(t)
	feed, err := nodeRows(s.db, s.writer, "west").open()
	require.NoError(t, err)
	s.commit(func(tx *state.Txn) {
		tx.UpsertNode(s.local, wire.Node{Name: "one", Cluster: "west", ClusterID: 2, BootID: "b", Labels: map[string]string{"zone": "a"}})
		tx.UpsertNode(s.remote, wire.Node{Name: "one", Cluster: "north", ClusterID: 1})
	})
	require.Equal(t, []string{"ADDED one"}, told(t, s, feed))
	s.commit(func(tx *state.Txn) { tx.DeleteNode(s.local, "west", "one") })
	require.Equal(t, []string{"DELETED one"}, told(t, s, feed))
}

// upsertIdentity and deleteIdentity are of the cluster west.
func (s *tables) upsertIdentity(id uint32, labels string) func(*state.Txn) {
	return func(tx *state.Txn) { tx.UpsertIdentity(s.local, wire.Identity{ID: id, Labels: labels}) }
}

func (s *tables) deleteIdentity(id uint32) func(*state.Txn) {
	return func(tx *state.Txn) { tx.DeleteIdentity(s.local, id) }
}

// TestIdentityFeed is that a reader has at once what this agent has created, and each
// identity once, in whichever order creation and table bring it.
func TestIdentityFeed(t *testing.T) {
	s := newTables(t)
	ids := newIdentities(hivetest.Logger(t), s.db, s.writer)
	s.commit(s.upsertIdentity(131500, "k8s:app=a;"), func(tx *state.Txn) {
		tx.UpsertIdentity(s.remote, wire.Identity{ID: 65537, Labels: "k8s:app=far;"})
	})
	feed, err := ids.open()
	require.NoError(t, err)
	require.Equal(t, []string{"ADDED 131500"}, told(t, s, feed), "none that is remote")

	// Created, then in the table, then gone.
	create := func(id string) *ciliumv2.CiliumIdentity {
		identity := &ciliumv2.CiliumIdentity{ObjectMeta: metav1.ObjectMeta{Name: id}}
		ids.add(identity)
		return identity
	}
	create("131501")
	<-feed.added()
	require.Equal(t, []string{"ADDED 131501"}, told(t, s, feed))
	late, err := ids.open()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"ADDED 131500", "ADDED 131501"}, told(t, s, late), "a list has it as well")
	s.commit(s.upsertIdentity(131501, "k8s:app=b;"))
	require.Equal(t, []string{"MODIFIED 131501"}, told(t, s, feed))
	require.Empty(t, ids.created)
	s.commit(s.deleteIdentity(131501))
	require.Equal(t, []string{"DELETED 131501"}, told(t, s, feed))

	// In the table before the answer to its creation.
	s.commit(s.upsertIdentity(131502, "k8s:app=c;"))
	create("131502")
	require.Equal(t, []string{"ADDED 131502"}, told(t, s, feed))

	// Through the table and gone before the reader looked.
	create("131503")
	require.Equal(t, []string{"ADDED 131503"}, told(t, s, feed))
	s.commit(s.upsertIdentity(131503, "k8s:app=d;"))
	s.commit(s.deleteIdentity(131503))
	require.Equal(t, []string{"DELETED 131503"}, told(t, s, feed))
	require.Empty(t, ids.created)

	// Deleted, and created again under its number before the reader looked.
	s.commit(s.deleteIdentity(131500))
	create("131500")
	require.Equal(t, []string{"DELETED 131500", "ADDED 131500"}, told(t, s, feed))

	// Deleted before the table had it: withdrawn when the API server doesn't know it.
	create("131504")
	require.Equal(t, []string{"ADDED 131504"}, told(t, s, feed))
	answers := map[string]error{"131504": k8serrors.NewNotFound(schema.GroupResource{}, "131504")}
	ids.check(t.Context(), time.Now().Add(time.Hour), func(_ context.Context, name string) error { return answers[name] })
	require.Equal(t, []string{"DELETED 131504"}, told(t, s, feed))
	require.Len(t, ids.created, 1, "what is there, and the cache late, stays")
	feed.close()
}

// TestLeavingIdentity is that an identity which was deleted is told as such, while
// endpoints that use it are yet to go.
func TestLeavingIdentity(t *testing.T) {
	s := newTables(t)
	ids := newIdentities(hivetest.Logger(t), s.db, s.writer)
	feed, err := ids.open()
	require.NoError(t, err)
	bee := endpoint("bee", "10.244.1.1", "10.0.0.1")
	s.commit(s.upsertIdentity(bee.Identity, "k8s:app=a;"), s.upsert(s.local, bee))
	require.Equal(t, []string{"ADDED 131500"}, told(t, s, feed))
	s.commit(func(tx *state.Txn) { tx.ReleaseIdentity(s.local, bee.Identity) })
	require.Equal(t, []string{"DELETED 131500"}, told(t, s, feed))
	s.commit(s.remove(s.local, bee))
	require.Empty(t, told(t, s, feed))
}

// TestIdentityOf is that the labels are those of the CiliumIdentity.
func TestIdentityOf(t *testing.T) {
	s := newTables(t)
	row := &state.Identity{Identity: wire.Identity{ID: 131500, Labels: "k8s:app=a;k8s:io.kubernetes.pod.namespace=meadow;k8s:odd=a=b;"}, Origin: s.local}
	object := identityOf(row)
	require.Equal(t, map[string]string{"k8s:app": "a", "k8s:io.kubernetes.pod.namespace": "meadow", "k8s:odd": "a=b"}, object.SecurityLabels)
	require.Equal(t, map[string]string{"io.kubernetes.pod.namespace": "meadow"}, object.Labels)
}
