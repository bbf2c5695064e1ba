// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"os"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// silent is health that nobody asks for.
type silent struct{ cell.Health }

func (silent) OK(string)              {}
func (silent) Degraded(string, error) {}

// nextProcess is one with the given directory, which belongs to this cluster.
func nextProcess(t *testing.T, dir, program string, cluster wire.ClusterInfo) (*snapshots, func() state.Snapshot) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	cluster.MaxConnectedClusters = 255
	log := hivetest.Logger(t)
	s := &snapshots{log: log, file: newSnapshotFile(dir), interval: time.Minute, cluster: cluster, writer: writer, program: program,
		local: ingest.NewLocal(ingest.Options{Log: log, Writer: writer, Local: cluster})}
	return s, func() state.Snapshot {
		row, _, found := writer.Tables().Datastore.Get(db.ReadTxn(), state.TheDatastore())
		require.True(t, found)
		return row.Snapshot
	}
}

// TestSnapshotIsHandedOn from process to process.
func TestSnapshotIsHandedOn(t *testing.T) {
	dir := t.TempDir()
	nodes := ingest.SavedPosition{Resource: wire.Nodes, Position: etcd.Position{ClusterID: 1, Revision: 7}}
	first, _ := nextProcess(t, dir, "build 1", hive)
	first.restore()
	require.Nil(t, first.local.Save(), "there is nothing yet")
	require.Zero(t, first.write(silent{}))
	require.Empty(t, names(t, dir))
	node, err := wire.MarshalNode(&wire.Node{Name: "a", Cluster: hive.Name, ClusterID: hive.ID})
	require.NoError(t, err)
	require.NoError(t, first.local.Restore(wire.Nodes, []ingest.Entry{
		{Key: "a", Value: node},
		{Key: "refused", Value: []byte("no node")},
	}))
	require.NoError(t, first.local.Resume(nodes))
	require.NotZero(t, first.write(silent{}))
	written, err := os.Stat(first.file.path)
	require.NoError(t, err)
	require.Zero(t, first.write(silent{}), "nothing has changed")

	// The same build goes on where the other was.
	second, row := nextProcess(t, dir, "build 1", hive)
	second.restore()
	require.Equal(t, 1, second.local.Counts().Nodes)
	require.Equal(t, []ingest.SavedPosition{nodes}, second.local.Save().Positions())
	require.Equal(t, 1, row().Restored)
	require.Equal(t, written.Size(), row().Bytes)

	// Another one has to list: it may read the same values differently.
	third, row := nextProcess(t, dir, "build 2", hive)
	third.restore()
	require.Equal(t, 1, third.local.Counts().Nodes)
	require.Nil(t, third.local.Save())
	require.Equal(t, 1, row().Restored)
	require.Zero(t, third.write(silent{}), "what can't be vouched for isn't kept")

	// So does one that doesn't know what it is.
	unknown, _ := nextProcess(t, dir, "", hive)
	unknown.restore()
	require.Equal(t, 1, unknown.local.Counts().Nodes)
	require.Nil(t, unknown.local.Save())

	// What is another cluster's isn't used, and stays that one's.
	fourth, row := nextProcess(t, dir, "build 1", wire.ClusterInfo{Name: "swarm", ID: 7})
	fourth.restore()
	require.Zero(t, fourth.local.Counts())
	require.Contains(t, row().Discarded, `"swarm"`)
	require.Contains(t, row().Discarded, first.file.path)
	after, err := os.Stat(first.file.path)
	require.NoError(t, err)
	require.True(t, os.SameFile(written, after))
	fifth, row := nextProcess(t, dir, "build 1", hive)
	fifth.restore()
	require.Equal(t, 1, row().Restored)

	// One that is torn is nobody's.
	require.NoError(t, os.Truncate(first.file.path, written.Size()-1))
	sixth, row := nextProcess(t, dir, "build 1", hive)
	sixth.restore()
	require.NotEmpty(t, row().Discarded)
	require.Empty(t, names(t, dir))
}

// TestSnapshotsFlags refuses what can't be.
func TestSnapshotsFlags(t *testing.T) {
	require.ErrorContains(t, SnapshotConfig{Interval: -1}.validate(), "must not be negative")
	require.NoError(t, SnapshotConfig{}.validate())
}
