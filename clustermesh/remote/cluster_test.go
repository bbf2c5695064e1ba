// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	healthtypes "github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestAddChangeRemove goes through the life of a cluster.
func TestAddChangeRemove(t *testing.T) {
	f := newFixture(t)
	first, second := f.startSource(etcd.ServerConfig{}), f.startSource(etcd.ServerConfig{})
	first.put(wire.ClusterConfigKey("red"),
		`{"id":2,"capabilities":{"cached":true,"maxConnectedClusters":255},"region":"north","later":1}`)
	second.publish("red", 2, wire.Capabilities{})

	red := f.add("red", config(first.url()))
	conn := red.expect(t, "run")
	require.Equal(t, "red", conn.Cluster)
	require.Equal(t, uint32(2), conn.Config.ID)
	require.Contains(t, string(conn.RawConfig), `"later":1`)
	got, err := conn.Client.Get(t.Context(), wire.ClusterConfigKey("red"))
	require.NoError(t, err)
	require.Equal(t, conn.RawConfig, got)
	row := f.healthy("red")
	require.Equal(t, uint32(2), row.ClusterID)
	require.True(t, row.Cached)
	require.Equal(t, "north", row.Region)
	require.NotEmpty(t, row.EtcdID)
	require.False(t, row.Since.IsZero())
	require.Zero(t, row.Failures)
	require.Equal(t, []string{"red"}, f.mesh.Clusters())
	require.NotZero(t, f.network.made(), "the hive's Dialer wasn't used")

	write(t, config(second.url()), f.dir, "red")
	red.expect(t, "ended")
	require.False(t, red.expect(t, "run").Config.Capabilities.Cached)
	changed := f.row("red", "the other etcd", func(r *state.RemoteCluster) bool { return r.Connected && r.EtcdID != row.EtcdID })
	require.Zero(t, changed.Failures)

	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")
	f.gone("red")
	require.Empty(t, f.mesh.Clusters())

	// Nothing of the first life is left, health included.
	f.add("red", config(first.url())).expect(t, "run")
	f.healthy("red")
	require.Eventually(t, func() bool {
		reports := f.healthOf("red")
		return len(reports) == 1 && reports[0].Level == healthtypes.LevelOK && reports[0].Stopped.IsZero()
	}, waitLimit, time.Millisecond)
}

// TestHalfWrittenConfig: a configuration that can't be used leaves the
// connection alone, and is told of, until there is a good one.
func TestHalfWrittenConfig(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	f.healthy("red")

	for _, bad := range []string{
		"",
		"endpoints:\n- http://127.0.0.1\n  no: [yaml",
		"endpoints: []\n",
		config(s.url()) + "cert-file: /missing\nkey-file: /missing\n",
	} {
		write(t, bad, f.dir, "red")
		row := f.problem("red", filepath.Join(f.dir, "red"))
		require.True(t, row.Connected)
		require.Eventually(t, func() bool {
			reports := f.healthOf("red")
			return len(reports) == 1 && reports[0].Level == healthtypes.LevelDegraded
		}, waitLimit, time.Millisecond)
		// The same as before: there is no reason to connect anew.
		write(t, config(s.url()), f.dir, "red")
		f.healthy("red")
	}
	require.Empty(t, red.calls)

	// One that was bad from the start.
	blue := f.add("blue", "endpoints: {\n")
	f.problem("blue", filepath.Join(f.dir, "blue"))
	s.publish("blue", 3, wire.Capabilities{})
	write(t, config(s.url()), f.dir, "blue")
	blue.expect(t, "run")
	f.healthy("blue")
}

// TestReconnectWithBrokenFile: the last good configuration also serves to
// connect anew while the file is broken.
func TestReconnectWithBrokenFile(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	write(t, "", f.dir, "red")
	f.problem("red", errNoEndpoints.Error())
	red.fail <- errors.New("some failure")
	red.expect(t, "ended")
	red.expect(t, "run")
}

func TestRunFails(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")

	red.fail <- errors.New("some failure")
	red.expect(t, "ended")
	f.row("red", "a failure", func(r *state.RemoteCluster) bool { return r.Failures == 1 })
	red.expect(t, "run")
	f.healthy("red")

	red.fail <- nil
	red.expect(t, "ended")
	red.expect(t, "run")
	require.Equal(t, uint64(2), f.healthy("red").Failures)
}

// TestRemoveAndAdd adds a cluster again while its removal isn't done.
func TestRemoveAndAdd(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	f.holdNext = make(chan struct{})
	hold := f.holdNext
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")

	f.holdNext = nil
	write(t, config("http://127.0.0.1:1"), f.dir, "red")
	write(t, config(s.url()), f.dir, "red")
	// A change that comes after it shows that it was seen.
	s.publish("blue", 3, wire.Capabilities{})
	f.add("blue", config(s.url())).expect(t, "run")
	require.Empty(t, f.made, "a Handler was made before the last one was done")
	require.Equal(t, []string{"blue"}, f.mesh.Clusters())

	close(hold)
	again := f.handler()
	require.NotSame(t, red, again)
	again.expect(t, "run")
	require.Empty(t, red.calls)
}

// TestRemoveAddRemove: what came back and went again stays away.
func TestRemoveAddRemove(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	f.holdNext = make(chan struct{})
	hold := f.holdNext
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	barrier := func(name string) { f.add(name, config("http://127.0.0.1:1")) }
	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")
	f.holdNext = nil
	write(t, config(s.url()), f.dir, "red")
	barrier("first")
	f.removeFile("red")
	barrier("second")
	close(hold)
	f.gone("red")
	barrier("third")
	require.Empty(t, f.made)
	require.Equal(t, []string{"first", "second", "third"}, f.mesh.Clusters())
}

// TestStopDuringRemove: the end of the process doesn't wait for a removal.
func TestStopDuringRemove(t *testing.T) {
	f := newFixture(t)
	s := f.startSource(etcd.ServerConfig{})
	s.publish("red", 2, wire.Capabilities{})
	f.holdNext = make(chan struct{})
	red := f.add("red", config(s.url()))
	red.expect(t, "run")
	f.removeFile("red")
	red.expect(t, "ended")
	red.expect(t, "remove")
	f.stop()
	require.Empty(t, red.calls)
}

// gone waits until the cluster has no row.
func (f *fixture) gone(cluster string) {
	f.t.Helper()
	timeout := time.After(waitLimit)
	for {
		_, _, watch, found := f.rows.GetWatch(f.db.ReadTxn(), state.RemoteClusterByName(cluster))
		if !found {
			return
		}
		select {
		case <-watch:
		case <-timeout:
			f.t.Fatalf("%s still has a row", cluster)
		}
	}
}
