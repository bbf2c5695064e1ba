// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	"github.com/cilium/cilium/pkg/kvstore/heartbeat"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// newTheirKVStoreMesh is upstream's "clustermesh-apiserver kvstoremesh", without
// the election of a leader and the servers beside it.
func newTheirKVStoreMesh(t testing.TB, c *mesh.Cluster, remotes *mesh.Directory) *mesh.Hive {
	return mesh.NewHive(t, flagsOf(c, mesh.Flags{"clustermesh-config": remotes.Path, "enable-heartbeat": "true"}),
		cell.Config(wire.DefaultClusterInfo),
		theirLocalEtcd,

		cell.Config(kvstoremesh.DefaultConfig),
		kvstoremesh.Cell,
		cell.Provide(func(config kvstoremesh.Config) heartbeat.Config {
			return heartbeat.Config{EnableHeartBeat: config.EnableHeartBeat}
		}),
		heartbeat.Cell,
		cell.Provide(kvstoremesh.NewSyncWaiter),
		cell.Invoke(func(*kvstoremesh.KVStoreMesh, kvstoremesh.SyncWaiter) {}),
	)
}
