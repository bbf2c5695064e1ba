// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package agent

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/bridge"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// TestUnused: what has no effect is named, and only where it has none.
func TestUnused(t *testing.T) {
	set := defaultConfig
	set.RelistJitter, set.Rebalance = time.Second, time.Hour
	snapshots := inclustercache.DefaultSnapshotConfig
	snapshots.Interval = 7 * time.Second
	all := []string{flagRelistJitter, flagRebalance, inclustercache.FlagSnapshotInterval}

	for _, datastore := range []string{inclustercache.DatastoreNone, inclustercache.DatastoreKubernetes} {
		set.Datastore = datastore
		require.Equal(t, all, unused(set, snapshots), datastore)
		byDefault := defaultConfig
		byDefault.Datastore = datastore
		require.Empty(t, unused(byDefault, inclustercache.DefaultSnapshotConfig), datastore)
	}
	set.Datastore = inclustercache.DatastoreEtcd
	require.Empty(t, unused(set, snapshots))

	// The log says so at start.
	set.Datastore = inclustercache.DatastoreNone
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	lifecycle := &cell.DefaultLifecycle{}
	reportUnused(log, lifecycle, set, snapshots)
	require.Empty(t, said.String())
	require.NoError(t, lifecycle.Start(slog.New(slog.DiscardHandler), t.Context()))
	for _, flag := range all {
		require.Contains(t, said.String(), "flag=--"+flag)
	}
}

// TestSources: of what the agent has flags for, ours get what they are asked to read.
func TestSources(t *testing.T) {
	of := func(datastore, ingest string) config {
		c := defaultConfig
		c.Datastore, c.Ingest = datastore, ingest
		return c
	}
	for _, test := range []struct {
		config
		bridge.Options
		off bool
	}{
		{of("none", "upstream"), bridge.Options{}, true},
		{of("kubernetes", "upstream"), bridge.Options{}, false},
		{of("etcd", "upstream"), bridge.Options{Local: true}, false},
		{of("none", "waggle"), bridge.Options{Remote: true}, false},
		{of("etcd", "waggle"), bridge.Options{Local: true, Remote: true}, false},
	} {
		got, err := options(test.config)
		require.NoError(t, err)
		require.Equal(t, test.Options, got)
		require.Equal(t, test.off, statusHost(got, test.config).Off)

		// The directory of remote clusters is read by one.
		mesh := meshConfig(common.Config{ClusterMeshConfig: "/clusters"}, got)
		require.Equal(t, got.Remote, mesh.ClusterMeshConfig != "")

		// --kvstore-opt is the cache's only where that is read, and then there is no kvstore.
		store := kvstore.Config{KVStoreOpt: map[string]string{"etcd.address": "http://cache"}}
		etcd, err := etcdConfig(store, test.config)
		require.NoError(t, err)
		require.Equal(t, got.Local, len(etcd.KVStoreOpt) > 0)
		store.KVStore = "etcd"
		_, err = etcdConfig(store, test.config)
		require.Equal(t, got.Local, err != nil)
	}
	_, err := options(of("none", "both"))
	require.ErrorContains(t, err, `"both"`)
}
