// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// Etcd is a real etcd in this process.
type Etcd struct {
	t      testing.TB
	config etcd.ServerConfig
	server *etcd.Server
	client *etcd.Client
}

// StartEtcd starts an etcd for the time of the test.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	// A loopback address of its own: while the server is stopped, nobody else
	// is given its port.
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	e := &Etcd{t: t, config: etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://" + host + ":0"}}
	e.Start()
	e.config.ListenURL = e.server.URL()
	t.Cleanup(e.Stop)
	var err error
	e.client, err = etcd.NewClient(Log(t), etcd.ClientConfig{Endpoints: []string{e.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.client.Close()) })
	return e
}

// URL is the address for clients; it stays the same over restarts.
func (e *Etcd) URL() string { return e.server.URL() }

// Client is a client of it, for the test's own questions.
func (e *Etcd) Client() *etcd.Client { return e.client }

// Start starts the server on the data that it has.
func (e *Etcd) Start() {
	e.t.Helper()
	server, err := etcd.StartServer(context.Background(), e.config)
	require.NoError(e.t, err)
	e.server = server
}

// Stop stops the server; its data stay. With clients connected it takes seconds.
func (e *Etcd) Stop() { e.server.Close() }

// Lose starts a stopped server with nothing in it: its data are lost.
func (e *Etcd) Lose() {
	e.t.Helper()
	e.config.Dir = e.t.TempDir()
	e.Start()
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
