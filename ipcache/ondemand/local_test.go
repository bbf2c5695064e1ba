// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// connected is a mesh of one connection.
type connected remote.Connection

func (c connected) Connection(cluster string) (remote.Connection, bool) {
	return remote.Connection(c), cluster == c.Cluster
}

// TestLocalIsSpared: a copy isn't asked for what the tables follow, and is for all else.
func TestLocalIsSpared(t *testing.T) {
	client, err := etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}})
	require.NoError(t, err)
	require.NoError(t, client.Close()) // whoever asks it hears of that
	for name, c := range map[string]struct {
		cached bool
		pushed func(string) bool
		want   error
	}{
		"a copy, which the tables follow":     {true, func(cluster string) bool { return cluster == "red" }, ErrNotFound},
		"a copy that isn't in the tables yet": {true, func(string) bool { return false }, ErrUnavailable},
		"a copy, and there is nobody else":    {true, nil, ErrUnavailable},
		"the cluster's own, which has it all": {false, func(string) bool { return true }, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			config := wire.ClusterConfig{ID: 2, Capabilities: wire.Capabilities{Cached: c.cached}}
			local := &Local{mesh: connected{Cluster: "red", Client: client, Config: config}, pushed: c.pushed}
			got := local.Resolve(t.Context(), []Question{{Cluster: "red", ClusterID: 2, Addr: podAddr}})
			require.Len(t, got, 1)
			require.ErrorIs(t, got[0].Err, c.want)
		})
	}
}
