// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"log/slog"
	"testing"

	identitycell "github.com/cilium/cilium/pkg/identity/cache/cell"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client/clientset/versioned"
	"github.com/cilium/cilium/pkg/k8s/client/clientset/versioned/fake"
	"github.com/cilium/cilium/pkg/k8s/watchers"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// givenClient is an allocator that takes note of its client.
type givenClient struct {
	identitycell.CachingIdentityAllocator
	client versioned.Interface
}

func (g *givenClient) InitIdentityAllocator(client versioned.Interface, _ kvstore.Client) <-chan struct{} {
	g.client = client
	return nil
}

// TestAllocatorClient: upstream's allocator lists and watches what the tables have, and
// creates at the API server, of which it reads at once.
func TestAllocatorClient(t *testing.T) {
	s, stands := startStandins(t)
	s.commit(s.upsertIdentity(131500, "k8s:app=a;"), s.complete)
	upstream := &givenClient{}
	a := stands.allocator(upstream)
	require.NoError(t, a.check(t.Context()), "there is no client yet")
	objects := fake.NewSimpleClientset()
	a.InitIdentityAllocator(objects, nil)
	require.NoError(t, a.check(t.Context()))
	client := upstream.client.CiliumV2().CiliumIdentities()

	list, err := client.List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	require.Equal(t, "131500", list.Items[0].Name)
	events, err := client.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	require.NoError(t, err)
	defer events.Stop()
	_, err = client.Create(t.Context(), &ciliumv2.CiliumIdentity{ObjectMeta: metav1.ObjectMeta{Name: "131501"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	event := <-events.ResultChan()
	require.Equal(t, watch.Added, event.Type)
	require.Equal(t, "131501", event.Object.(*ciliumv2.CiliumIdentity).Name)
	_, err = objects.CiliumV2().CiliumIdentities().Get(t.Context(), "131501", metav1.GetOptions{})
	require.NoError(t, err, "it isn't at the API server")
	_, err = client.Create(t.Context(), &ciliumv2.CiliumIdentity{ObjectMeta: metav1.ObjectMeta{Name: "131501"}}, metav1.CreateOptions{})
	require.Error(t, err)
}

// TestGroups: the agent waits for all groups but those that the tables have.
func TestGroups(t *testing.T) {
	groups, waitOnly := withoutGroups(func(*slog.Logger, watchers.WatcherConfiguration) ([]string, []string) {
		return []string{"cilium/v2::CiliumEndpoint", "cilium/v2::CiliumNetworkPolicy", "cilium/v2::CiliumNode", "cilium/v2alpha1::CiliumEndpointSlice"},
			[]string{"core/v1::Pods"}
	})(slog.New(slog.DiscardHandler), nil)
	require.Equal(t, []string{"cilium/v2::CiliumNetworkPolicy"}, groups)
	require.Equal(t, []string{"core/v1::Pods"}, waitOnly)
}
