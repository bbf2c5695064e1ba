// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"testing"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func newTestServer(t *testing.T, revision int64) *server {
	t.Helper()
	s := newServer("c1", t.TempDir()+"/etcd")
	require.NoError(t, s.start(t.Context(), hivetest.Logger(t), revision))
	t.Cleanup(func() { require.NoError(t, s.stop(func() {})) })
	return s
}

func (s *server) header(t *testing.T) (clusterID uint64, revision int64) {
	t.Helper()
	resp, err := s.client.Etcd().Get(t.Context(), scratchKey)
	require.NoError(t, err)
	return resp.Header.ClusterId, resp.Header.Revision
}

// TestWipe gives the same cluster ID for the same token, at the revision that was
// asked for; that is what scripts about lost data rely on.
func TestWipe(t *testing.T) {
	s := newTestServer(t, 100)
	before, revision := s.header(t)
	require.EqualValues(t, 100, revision)

	wipe := func(sameToken bool, to int64) (uint64, int64) {
		require.NoError(t, s.stop(func() {}))
		require.NoError(t, s.wipe(sameToken))
		require.NoError(t, s.start(t.Context(), hivetest.Logger(t), to))
		return s.header(t)
	}
	id, revision := wipe(true, 0)
	require.Equal(t, before, id)
	require.EqualValues(t, 1, revision)

	id, revision = wipe(true, 500)
	require.Equal(t, before, id)
	require.EqualValues(t, 500, revision)

	id, _ = wipe(false, 0)
	require.NotEqual(t, before, id)
}

// TestHistory prints every change below a prefix, before and after a compaction.
func TestHistory(t *testing.T) {
	s := newTestServer(t, 0)
	client := s.client.Etcd()
	text, err := history(t.Context(), client, "a/", false)
	require.NoError(t, err)
	require.Empty(t, text)

	for range 2 {
		_, err := client.Put(t.Context(), "a/1", "")
		require.NoError(t, err)
	}
	_, err = client.Txn(t.Context()).Then(clientv3.OpDelete("a/1"), clientv3.OpPut("a/2", ""), clientv3.OpPut("b", "")).Commit()
	require.NoError(t, err)
	text, err = history(t.Context(), client, "a/", false)
	require.NoError(t, err)
	require.Equal(t, "PUT a/1\nPUT a/1\nDELETE a/1\nPUT a/2\n", text)
	text, err = history(t.Context(), client, "a/", true)
	require.NoError(t, err)
	require.Equal(t, "DELETE a/1\n", text)

	require.NoError(t, compact(t.Context(), client))
	require.NoError(t, compact(t.Context(), client))
	_, err = client.Put(t.Context(), "a/3", "")
	require.NoError(t, err)
	text, err = history(t.Context(), client, "a/", false)
	require.NoError(t, err)
	require.Equal(t, "PUT a/3\n", text)
}

// TestVanished tells a key that moves from one that is gone in between.
func TestVanished(t *testing.T) {
	s := newTestServer(t, 0)
	client := s.client.Etcd()
	commit := func(ops ...clientv3.Op) {
		t.Helper()
		_, err := client.Txn(t.Context()).Then(ops...).Commit()
		require.NoError(t, err)
	}
	is := func(want string) {
		t.Helper()
		text, err := vanished(t.Context(), client, []string{"a/", "b/"})
		require.NoError(t, err)
		require.Equal(t, want, text)
	}
	put := func(key string) clientv3.Op { return clientv3.OpPut(key, "") }
	commit(put("a/1"), put("a/2"), put("c/3"))
	commit(put("b/1"))
	commit(put("b/1"), clientv3.OpDelete("a/1"))
	commit(put("a/1"), clientv3.OpDelete("b/1"), clientv3.OpDelete("c/3"))
	is("")
	commit(clientv3.OpDelete("a/1"), clientv3.OpDelete("a/2"))
	commit(put("b/1"))
	is("1\n2\n")
	commit(clientv3.OpDelete("b/1"))
	is("1\n2\n1\n")
	commit(put("a/4"))
	require.NoError(t, compact(t.Context(), client))
	commit(put("b/4"))
	commit(clientv3.OpDelete("a/4"))
	is("")
}

// TestExpireLeases takes all keys on leases, and no other.
func TestExpireLeases(t *testing.T) {
	s := newTestServer(t, 0)
	client := s.client.Etcd()
	require.NoError(t, putOnLease(t.Context(), client, "leased", 0))
	_, err := client.Put(t.Context(), "kept", "")
	require.NoError(t, err)
	n, err := expireLeases(t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	resp, err := client.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	require.Equal(t, "kept", string(resp.Kvs[0].Key))
}
