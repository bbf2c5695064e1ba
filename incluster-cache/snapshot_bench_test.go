// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// BenchmarkSnapshot writes the snapshot of an agent with 100,000 endpoints, from its
// tables to its file on disk, and restores one, from the file to the tables.
func BenchmarkSnapshot(b *testing.B) {
	const count = 100_000
	content := held{wire.Endpoints: endpointEntries(b, count)}
	fresh := func() *snapshots {
		writer, err := state.NewWriter(statedb.New())
		require.NoError(b, err)
		s := &snapshots{log: slog.New(slog.DiscardHandler), cluster: hive, writer: writer, program: "test"}
		s.local = ingest.NewLocal(ingest.Options{Log: s.log, Writer: writer, Local: wire.ClusterInfo{Name: hive.Name, ID: hive.ID, MaxConnectedClusters: 255}})
		return s
	}
	for i := range content[wire.Endpoints] {
		e := &content[wire.Endpoints][i]
		ep, err := wire.DecodeEndpoint(e.Key, e.Value, nil)
		require.NoError(b, err)
		ep.Identity |= hive.ID << 16
		e.Value, err = wire.MarshalEndpoint(&ep)
		require.NoError(b, err)
	}
	agent := fresh()
	agent.file = newSnapshotFile(b.TempDir())
	require.NoError(b, agent.local.Restore(wire.Endpoints, content[wire.Endpoints]))
	require.NoError(b, agent.local.Resume(ingest.SavedPosition{Resource: wire.Endpoints, Position: etcd.Position{Revision: 1}}))
	header := snapshotHeader{Cluster: hive.Name, ClusterID: hive.ID, Created: time.Now(), Program: "test"}
	write := func(b *testing.B) int64 {
		saved := agent.local.Save()
		header.Resources = saved.Positions()
		size, err := agent.file.write(header, saved.Entries)
		require.NoError(b, err)
		return size
	}
	write(b)
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		var size int64
		began := processorTime(b)
		for b.Loop() {
			size = write(b)
		}
		b.ReportMetric(float64(size)/count, "bytes/endpoint")
		b.ReportMetric(float64(processorTime(b)-began)/float64(b.N)/1e6, "cpu-ms/op")
	})
	b.Run("restore", func(b *testing.B) {
		b.ReportAllocs()
		var used time.Duration
		for b.Loop() {
			b.StopTimer()
			next := fresh()
			next.file = snapshotFile{path: filepath.Clean(agent.file.path)}
			began := processorTime(b)
			b.StartTimer()
			next.restore()
			b.StopTimer()
			used += processorTime(b) - began
			require.Equal(b, count, next.local.Counts().Endpoints)
			b.StartTimer()
		}
		b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
	})
}

// processorTime is what the process has used so far. Unlike the time that goes by it
// means something on a machine that does other things as well.
func processorTime(b *testing.B) time.Duration {
	var usage unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
