// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"log/slog"
	"testing"

	etcdinit "github.com/cilium/cilium/pkg/kvstore/etcdinit"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// withPasswords gives users their name as a password: upstream's come with
// certificates, which these tests have no use for.
type withPasswords struct{ clientv3.Auth }

func (a withPasswords) UserAddWithOptions(ctx context.Context, name, _ string, _ *clientv3.UserAddOptions) (*clientv3.AuthUserAddResponse, error) {
	return a.UserAdd(ctx, name, name)
}

// TestOnDemandIsReadableByRemotes: the roles that upstream gives an etcd let remote
// clusters look up what isn't pushed, and nobody write it.
func TestOnDemandIsReadableByRemotes(t *testing.T) {
	at := mesh.StartEtcd(t)
	keys := []string{wire.OnDemandEndpointPrefix + "10.1.0.10", wire.OnDemandIdentityPrefix + "65546"}
	for _, key := range keys {
		_, err := at.Client().Etcd().Put(t.Context(), key, "v")
		require.NoError(t, err)
	}
	require.NoError(t, etcdinit.ClusterMeshEtcdInit(t.Context(), slog.New(slog.DiscardHandler),
		&clientv3.Client{Auth: withPasswords{at.Client().Etcd()}}, north))

	as := func(user string) *clientv3.Client {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{at.URL()}, Username: user, Password: user})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		return client
	}
	remote, local := as("remote"), as("local-"+north)
	for _, key := range keys {
		resp, err := remote.Get(t.Context(), key)
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 1)
		_, err = remote.Put(t.Context(), key, "w")
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
		// Local agents read what KVStoreMesh caches.
		_, err = local.Get(t.Context(), key)
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	}
	for _, prefix := range []string{wire.OnDemandEndpointPrefix, wire.OnDemandIdentityPrefix} {
		resp, err := remote.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		require.NoError(t, err)
		require.EqualValues(t, 1, resp.Count)
	}
}
