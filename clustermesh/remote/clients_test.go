// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func isDone(client *client) bool {
	select {
	case <-client.Done():
		return true
	default:
		return false
	}
}

func TestClients(t *testing.T) {
	dir := t.TempDir()
	write := func(name, endpoint string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("endpoints:\n- "+endpoint+"\n"), 0o600))
		return path
	}
	one, two := write("one", "http://127.0.0.1:1"), write("two", "http://127.0.0.1:1")
	other := write("other", "http://127.0.0.1:2")
	open := func(path string) (*etcd.Client, error) {
		return etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{ConfigPath: path})
	}
	take := func(c *clients, path string) *client {
		client, err := c.take(path)
		require.NoError(t, err)
		return client
	}

	apart := newClients(slog.New(slog.DiscardHandler), false, open)
	a, b := take(apart, one), take(apart, two)
	require.NotSame(t, a, b)
	apart.giveBack(a)
	apart.giveBack(b)
	require.True(t, isDone(a) && isDone(b))

	shared := newClients(slog.New(slog.DiscardHandler), true, open)
	a, b = take(shared, one), take(shared, two)
	require.Same(t, a, b)
	c := take(shared, other)
	require.NotSame(t, a, c)
	require.Equal(t, []string{"http://127.0.0.1:2"}, c.Endpoints())

	// Who has one keeps it when it is retired, and the others get a new one.
	shared.retire(a)
	d := take(shared, one)
	require.NotSame(t, a, d)
	shared.retire(a) // again, by the other one that had it
	require.Same(t, d, take(shared, two))
	shared.giveBack(a)
	require.False(t, isDone(a), "it has a user left")
	shared.giveBack(b)
	require.True(t, isDone(a))

	// What a file says now is what counts.
	write("two", "http://127.0.0.1:2")
	require.Same(t, c, take(shared, two))
	for range 2 {
		shared.giveBack(c)
		shared.giveBack(d)
	}
	require.True(t, isDone(c) && isDone(d))
	require.Empty(t, shared.current)

	_, err := shared.take(filepath.Join(dir, "absent"))
	require.Error(t, err)
}

// TestFileThatChangesWhileItIsRead: a client isn't shared under a content that it
// may not have been made from.
func TestFileThatChangesWhileItIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "one")
	write := func(endpoint string) {
		require.NoError(t, os.WriteFile(path, []byte("endpoints:\n- "+endpoint+"\n"), 0o600))
	}
	write("http://127.0.0.1:1")
	shared := newClients(slog.New(slog.DiscardHandler), true, func(path string) (*etcd.Client, error) {
		write("http://127.0.0.1:2")
		return etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{ConfigPath: path})
	})
	client, err := shared.take(path)
	require.NoError(t, err)
	require.Empty(t, shared.current)
	shared.giveBack(client)
	require.True(t, isDone(client))
}

// TestSharedConnection follows two clusters over one connection. When one of them
// gives it up, it gets another, and the other cluster doesn't notice.
func TestSharedConnection(t *testing.T) {
	f := newFixture(t, SharedConnections)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	s.publish("blue", 3, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	first := red.expect(t, "run").Client
	blue := f.add("blue", config(s.url()))
	require.Same(t, first, blue.expect(t, "run").Client)
	f.healthy("red")
	f.healthy("blue")

	red.fail <- errors.New("no use")
	red.expect(t, "ended")
	require.NotSame(t, first, red.expect(t, "run").Client)
	f.healthy("red")
	require.Empty(t, blue.calls)

	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")
	s.publish("blue", 4, wire.Capabilities{})
	blue.expect(t, "ended")
	blue.expect(t, "reset")
	require.Equal(t, uint32(4), blue.expect(t, "run").Config.ID)

	// Both come back when the source does.
	green := f.add("green", config(s.url()))
	s.publish("green", 5, wire.Capabilities{})
	green.expect(t, "run")
	f.healthy("green")
	address := s.url()
	f.lose(s, "green")
	s = f.startSource(etcd.ServerConfig{ListenURL: address})
	s.publish("blue", 4, wire.Capabilities{})
	s.publish("green", 5, wire.Capabilities{})
	f.healthy("blue")
	f.healthy("green")
}
