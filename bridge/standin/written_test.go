// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"errors"
	"testing"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

const hereIP = "10.0.0.1"

func writtenCEP(name string, uid types.UID) *ciliumv2.CiliumEndpoint {
	return &ciliumv2.CiliumEndpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meadow", Name: name, UID: uid},
		Status: ciliumv2.EndpointStatus{
			Identity:   &ciliumv2.EndpointIdentity{ID: 131500},
			Networking: &ciliumv2.EndpointNetworking{NodeIP: hereIP, Addressing: ciliumv2.AddressPairList{{IPV4: "10.244.1.1"}}},
		},
	}
}

// asked is an API server's answer, and whom it was asked for.
type asked struct {
	names []string
	err   error
}

func (a *asked) get(_ context.Context, p pod) (*ciliumv2.CiliumEndpoint, error) {
	a.names = append(a.names, p.name)
	if a.err != nil {
		return nil, a.err
	}
	return writtenCEP(p.name, "first"), nil
}

var errNotFound = k8serrors.NewNotFound(schema.GroupResource{Resource: "ciliumendpoints"}, "bee")

// TestWritten is what this agent has written and the table doesn't have: the store gives
// it by node, until the API server says that it is gone.
func TestWritten(t *testing.T) {
	s, stands := startStandins(t)
	s.commit(s.complete)
	store, err := stands.endpoints.Store(t.Context())
	require.NoError(t, err)
	sliceStore, err := stands.slices.Store(t.Context())
	require.NoError(t, err)
	// The address is another pod's already.
	s.commit(s.upsert(s.local, endpoint("hornet", "10.244.1.1", "10.0.0.2")))
	stands.written.add(writtenCEP("bee", "first"))
	require.Equal(t, []string{"meadow/bee"}, onNode(t, store, hereIP))
	require.Equal(t, []string{"meadow.bee"}, onNode(t, sliceStore, hereIP))
	slices, err := sliceStore.ByIndex(localNodeIndex, hereIP)
	require.NoError(t, err)
	require.Equal(t, "meadow", slices[0].Namespace)
	require.Equal(t, "bee", slices[0].Endpoints[0].Name)
	require.Equal(t, hereIP, slices[0].Endpoints[0].Networking.NodeIP)
	require.NotContains(t, onNode(t, store, "10.0.0.2"), "meadow/bee")

	// It is asked for when it is late, and goes with the answer only.
	a := &asked{}
	stands.written.check(t.Context(), time.Now().Add(-time.Hour), a.get)
	require.Empty(t, a.names)
	for _, a.err = range []error{nil, errors.New("the API server is away"), context.Canceled} {
		stands.written.check(t.Context(), time.Now().Add(time.Second), a.get)
		require.Equal(t, []string{"meadow/bee"}, onNode(t, store, hereIP))
	}
	require.Len(t, a.names, 3)
	a.err = errNotFound
	stands.written.check(t.Context(), time.Now().Add(time.Second), a.get)
	require.Empty(t, onNode(t, store, hereIP))

	// A deletion of an earlier one of that name isn't this one's.
	stands.written.add(writtenCEP("bee", "second"))
	earlier, second := types.UID("first"), types.UID("second")
	stands.written.forget(pod{"meadow", "bee"}, &earlier)
	require.Len(t, onNode(t, store, hereIP), 1)
	stands.written.forget(pod{"meadow", "bee"}, &second)
	require.Empty(t, onNode(t, store, hereIP))
}

// TestWrittenInTable is that what the table has isn't asked for, and what it loses is, at
// once: somebody else may have deleted it.
func TestWrittenInTable(t *testing.T) {
	s, stands := startStandins(t)
	bee := endpoint("bee", "10.244.1.1", hereIP)
	s.commit(s.complete, s.upsert(s.local, bee))
	stands.written.add(writtenCEP("bee", "first"))
	store, err := stands.endpoints.Store(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"meadow/bee"}, onNode(t, store, hereIP), "it is given once")

	a := &asked{err: errNotFound}
	stands.written.check(t.Context(), time.Now().Add(time.Second), a.get)
	require.Empty(t, a.names)

	// Who has told of another one has seen this one, and hears of its end.
	s.commit(s.upsert(s.local, endpoint("wasp", "10.244.1.2", hereIP)))
	require.Eventually(t, func() bool { return len(onNode(t, store, hereIP)) == 2 }, patience, time.Millisecond)

	s.commit(s.remove(s.local, bee))
	// An hour ago the API server was sure; the table's loss outweighs that.
	require.Eventually(t, func() bool {
		stands.written.check(t.Context(), time.Now().Add(-time.Hour), a.get)
		return len(onNode(t, store, hereIP)) == 1
	}, patience, time.Millisecond)
	require.Equal(t, []string{"bee"}, a.names)
}

// recorder is a cell.Health that hands on what it is told.
type recorder struct {
	cell.Health
	levels chan cell.Level
}

func (h recorder) OK(string) { h.levels <- cell.StatusOK }

func (h recorder) Degraded(string, error) { h.levels <- cell.StatusDegraded }

// TestAwaitAll: an agent that waits too long for all of its cluster says so, and then
// that it has it.
func TestAwaitAll(t *testing.T) {
	s := newTables(t)
	stands := &standins{db: s.db, writer: s.writer, tables: s.writer.Tables()}
	health, done := recorder{levels: make(chan cell.Level, 16)}, make(chan error)
	go func() { done <- stands.awaitAll(t.Context(), health) }()
	require.Equal(t, cell.StatusOK, <-health.levels)
	require.Equal(t, cell.StatusDegraded, <-health.levels)
	s.commit(s.complete)
	require.NoError(t, <-done)
	var last cell.Level
	for len(health.levels) > 0 {
		last = <-health.levels
	}
	require.Equal(t, cell.StatusOK, last)
}
