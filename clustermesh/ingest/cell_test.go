// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// start runs a hive with the real remote room on the given directory.
func start(t *testing.T, directory string, timeout time.Duration) (*statedb.DB, state.Tables) {
	var (
		db     *statedb.DB
		writer *state.Writer
	)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h := hive.New(
		state.Cell, remote.Cell, Cell,
		cell.Config(etcd.DefaultConfig),
		cell.Provide(func() wire.ClusterInfo {
			return wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255}
		}),
		cell.Invoke(func(d *statedb.DB, w *state.Writer) { db, writer = d, w }),
	)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Set("clustermesh-config", directory))
	require.NoError(t, flags.Set("clustermesh-sync-timeout", timeout.String()))
	require.NoError(t, h.Start(log, t.Context()))
	t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
	return db, writer.Tables()
}

// initialized is what statedb's readers wait for, for each table.
func initialized(db *statedb.DB, tables state.Tables) []<-chan struct{} {
	txn := db.ReadTxn()
	var all []<-chan struct{}
	for _, table := range []interface {
		Initialized(statedb.ReadTxn) (bool, <-chan struct{})
	}{tables.Endpoints, tables.Identities, tables.Nodes, tables.Services, tables.ServiceExports} {
		_, ch := table.Initialized(txn)
		all = append(all, ch)
	}
	return all
}

func TestTablesAreInitializedOnceSynced(t *testing.T) {
	f := setup(t)
	f.config.Capabilities = wire.Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255}
	config, err := wire.MarshalClusterConfig(f.config)
	require.NoError(t, err)
	f.put(wire.ClusterConfigKey(peer), string(config))
	f.oneOfEach()

	directory := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(directory, peer),
		fmt.Appendf(nil, "endpoints: [%q]\n", f.server.URL()), 0o600))
	db, tables := start(t, directory, time.Hour)
	f.db, f.tables = db, tables
	f.wantsRow(func(c *assert, row state.RemoteCluster) {
		require.Equal(c, 1, row.Resources[wire.Nodes].Entries)
		require.True(c, row.Connected)
	})
	for _, ch := range initialized(db, tables) {
		select {
		case <-ch:
			require.Fail(t, "initialized before the source said that it is complete")
		default:
		}
	}

	f.putCanaries()
	for _, ch := range initialized(db, tables) {
		<-ch
	}
	require.True(t, f.row().Ready)
	require.Contains(t, f.content(), "endpoint 10.3.0.1")

	// The mesh drains what is removed from its directory.
	require.NoError(t, os.Remove(filepath.Join(directory, peer)))
	f.wants(map[string]string{})
	require.Eventually(t, func() bool { return tables.RemoteClusters.NumObjects(db.ReadTxn()) == 0 }, patience, tick)
}

func TestTablesAreInitializedWithoutWhatIsAway(t *testing.T) {
	directory := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(directory, "away"),
		[]byte("endpoints: [\"http://127.0.0.1:1\"]\n"), 0o600))
	for name, directory := range map[string]string{"no mesh": "", "no cluster": t.TempDir(), "timeout": directory} {
		t.Run(name, func(t *testing.T) {
			timeout := time.Hour
			if name == "timeout" {
				timeout = 50 * time.Millisecond
			}
			for _, ch := range initialized(start(t, directory, timeout)) {
				<-ch
			}
		})
	}
}

func TestStartup(t *testing.T) {
	s := newStartup()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, s.Wait(ended), "list of remote clusters")
	for _, cluster := range []string{"c", "a", "b"} {
		s.expect(cluster)
	}
	s.settle("b") // ready, or removed, before the list is complete
	s.Complete()
	err := s.Wait(ended)
	require.ErrorContains(t, err, `["a" "c"]`)
	require.ErrorIs(t, err, context.Canceled)

	s.expect("late")
	s.settle("a")
	s.settle("a")
	s.settle("c")
	require.NoError(t, s.Wait(t.Context()))
	s.Complete()
}
