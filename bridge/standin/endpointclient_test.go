// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"errors"
	"testing"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/client/clientset/versioned/fake"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
)

// TestEndpointClient: whatever the API server says of one endpoint is noted, a refusal
// isn't, and what is deleted is forgotten whether or not the API server could be told.
func TestEndpointClient(t *testing.T) {
	s := newTables(t)
	note := newWritten(s.db, s.writer.Tables().Endpoints)
	objects := fake.NewSimpleClientset()
	var refusal error
	objects.PrependReactor("*", "ciliumendpoints", func(clienttesting.Action) (bool, runtime.Object, error) {
		return refusal != nil, nil, refusal
	})
	client := writersV2{objects.CiliumV2(), note}.CiliumEndpoints("meadow")
	ctx, bee := t.Context(), pod{namespace: "meadow", name: "bee"}
	noted := func(node string) {
		t.Helper()
		e, ok := note.get(bee)
		require.Equal(t, node != "", ok)
		if ok {
			require.Equal(t, node, e.Networking.NodeIP)
		}
	}
	at := func(node string) *ciliumv2.CiliumEndpoint {
		e := writtenCEP("bee", "first")
		e.Status.Networking.NodeIP = node
		return e
	}

	refusal = errors.New("away")
	_, err := client.Create(ctx, at("10.0.0.1"), metav1.CreateOptions{})
	require.ErrorIs(t, err, refusal)
	noted("")
	refusal = nil
	_, err = client.Create(ctx, at("10.0.0.1"), metav1.CreateOptions{})
	require.NoError(t, err)
	noted("10.0.0.1")
	_, err = client.Update(ctx, at("10.0.0.2"), metav1.UpdateOptions{})
	require.NoError(t, err)
	noted("10.0.0.2")
	_, err = client.Patch(ctx, "bee", types.JSONPatchType,
		[]byte(`[{"op":"replace","path":"/status/networking/node","value":"10.0.0.3"}]`), metav1.PatchOptions{})
	require.NoError(t, err)
	noted("10.0.0.3")
	note.forget(bee, nil)
	_, err = client.Get(ctx, "bee", metav1.GetOptions{})
	require.NoError(t, err)
	noted("10.0.0.3")

	// Another one has taken its place, of which the deletion isn't.
	other := types.UID("other")
	refusal = errors.New("away")
	require.ErrorIs(t, client.Delete(ctx, "bee", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}}), refusal)
	noted("10.0.0.3")
	require.ErrorIs(t, client.Delete(ctx, "bee", metav1.DeleteOptions{}), refusal)
	noted("")
}
