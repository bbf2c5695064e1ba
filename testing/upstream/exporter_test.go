// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"testing"

	"github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	cmk8s "github.com/cilium/cilium/clustermesh-apiserver/clustermesh/k8s"
	"github.com/cilium/cilium/clustermesh-apiserver/syncstate"
	clustercfgcell "github.com/cilium/cilium/pkg/clustermesh/clustercfg/cell"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/heartbeat"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/lock"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// noRateLimit lifts upstream's 20 operations a second, which would only make the
// tests slow.
const noRateLimit = ",etcd.qps=10000"

// flagsOf are flags of an upstream program that writes into a cluster's etcd.
func flagsOf(c *mesh.Cluster, more mesh.Flags) mesh.Flags {
	return c.Flags(mesh.Flags{"kvstore-opt": "etcd.address=" + c.Etcd.URL() + noRateLimit}, more)
}

// exporter is upstream's or ours.
type exporter struct {
	*mesh.Hive
	// synced gives what is closed once everything is in etcd.
	synced func() <-chan struct{}
}

// start starts the exporter and waits until all that it found at its start is
// in etcd.
func (e exporter) start() {
	e.Start()
	<-e.synced()
}

// newOurExporter is "waggle clustermesh".
func newOurExporter(t testing.TB, c *mesh.Cluster, objects *mesh.Objects, flags mesh.Flags) exporter {
	ours := c.NewExporter(t, objects, flags)
	return exporter{Hive: ours.Hive, synced: func() <-chan struct{} { return ours.Export.Synced() }}
}

// newTheirExporter is upstream's "clustermesh-apiserver clustermesh", without
// the servers beside it.
func newTheirExporter(t testing.TB, c *mesh.Cluster, objects *mesh.Objects, flags mesh.Flags) exporter {
	var state syncstate.SyncState
	theirs := mesh.NewHive(t, flagsOf(c, flags),
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(wire.DefaultMCSAPIConfig),
		cell.Provide(func() client.Clientset { return objects }),
		cmk8s.ResourcesCell,

		theirLocalEtcd,
		heartbeat.Enabled,
		heartbeat.Cell,
		clustercfgcell.WithSyncedCanaries(true),
		clustercfgcell.Cell,
		clustermesh.Synchronization,
		cell.Invoke(func(s syncstate.SyncState) { state = s }),
	)
	return exporter{Hive: theirs, synced: func() <-chan struct{} { return state.WaitChannel() }}
}

// theirLocalEtcd is the part of upstream's clustermesh-apiserver/common that
// connects to the local etcd.
var theirLocalEtcd = cell.Group(
	cell.Provide(func() syncstate.SyncState {
		return syncstate.SyncState{StoppableWaitGroup: lock.NewStoppableWaitGroup()}
	}),
	kvstore.Cell(kvstore.EtcdBackendName),
	cell.Provide(func(state syncstate.SyncState) kvstore.ExtraOptions {
		return kvstore.ExtraOptions{BootstrapComplete: state.WaitChannel()}
	}),
	store.Cell,
)
