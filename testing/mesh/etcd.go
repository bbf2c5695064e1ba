// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/testing/relay"
)

// Etcd is a real etcd in this process, behind an address that stays the same.
type Etcd struct {
	t      testing.TB
	dir    string
	relay  *relay.Relay
	server *etcd.Server
	client *etcd.Client
}

// StartEtcd starts an etcd for the time of the test.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	address, err := relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(address.Close)
	e := &Etcd{t: t, dir: t.TempDir(), relay: address}
	t.Cleanup(e.Stop)
	e.Start()
	e.client, err = etcd.NewClient(Log(t), etcd.ClientConfig{Endpoints: []string{e.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.client.Close()) })
	return e
}

// URL is the address for clients.
func (e *Etcd) URL() string { return "http://" + e.relay.Address() }

// Client is a client of it, for the test's own questions.
func (e *Etcd) Client() *etcd.Client { return e.client }

// Start starts the server on the data that it has.
func (e *Etcd) Start() {
	e.t.Helper()
	server, err := etcd.StartServer(context.Background(), etcd.ServerConfig{Dir: e.dir, ListenURL: "http://127.0.0.1:0"})
	require.NoError(e.t, err)
	e.server = server
	e.relay.Aim(strings.TrimPrefix(server.URL(), "http://"))
}

// Stop cuts the server off and stops it, if it runs. Its data stay.
func (e *Etcd) Stop() {
	e.relay.Aim("")
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
}

// Lose takes the data of a stopped server: it starts with nothing in it, as
// another etcd.
func (e *Etcd) Lose() {
	e.t.Helper()
	e.dir = e.t.TempDir()
}

// List gives every key below a prefix with its value.
func (e *Etcd) List(ctx context.Context, prefix string) (map[string]string, error) {
	resp, err := e.client.Etcd().Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("listing %q: %w", prefix, err)
	}
	content := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		content[string(kv.Key)] = string(kv.Value)
	}
	return content, nil
}
