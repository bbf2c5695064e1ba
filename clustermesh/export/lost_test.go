// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
)

// TestLostKeysComeBack has etcd lose leases with all that is on them, pushed and on
// demand, while pods, endpoints, identities and namespaces change, keys move between
// the two places, and exporters are restarted with other flags. What settles is what a
// fresh start gives, canaries included.
func TestLostKeysComeBack(t *testing.T) {
	server, stop := startServer(t, "http://127.0.0.1:0")
	defer stop()
	options := etcd.DefaultOptions
	options.QPS, options.MaxTxnOps = 100_000, 16
	client, err := etcd.NewClient(quietly(), etcd.ClientConfig{Endpoints: []string{server.URL()}, LeaseTTL: time.Hour, Options: options})
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()

	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, client, drawFlags(t))
		defer func() { w.stop() }()
		w.populate()
		for range rapid.IntRange(3, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				w.stop()
				w.start(drawFlags(t))
			case 1:
				w.settle()
			case 2, 3:
				w.loseLeases()
			default:
				changes := rapid.IntRange(1, 6).Draw(t, "changes")
				w.write(func(tx *state.Txn) {
					for range changes {
						w.change(t, tx)
					}
				})
			}
		}
		w.settle()
	})
}

// loseLeases ends all leases that there are.
func (w *world) loseLeases() {
	leases, err := w.client.Etcd().Leases(context.Background())
	require.NoError(w.t, err)
	for _, lease := range leases.Leases {
		w.revoke(lease.ID)
	}
}

func (w *world) revoke(id clientv3.LeaseID) {
	_, err := w.client.Etcd().Revoke(context.Background(), id)
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		require.NoError(w.t, err)
	}
}
