// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync"

	upstream "github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh"
	"github.com/cilium/cilium/clustermesh-apiserver/option"
	"github.com/cilium/cilium/clustermesh-apiserver/syncstate"
	mesh "github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/etcd"
	ours "github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// KVStoreMesh is the hive of "kvstoremesh": remote etcds → local etcd.
var KVStoreMesh = cell.Module(
	"kvstoremesh",
	"Remote kvstores to the local one as KVStoreMesh",

	infrastructure(option.PprofPortKVStoreMesh, defaults.GopsPortKVStoreMesh),
	common,

	etcd.ClientParts, // that of the local etcd; of all replicas

	upstream.HealthAPIEndpointsCell, // /readyz
	cell.Provide(newReadiness),

	upstream.APIServerCell, // --api-serve-addr
	cell.Provide(newClusterHandler),

	metrics.Metric(mesh.MetricsProvider), // who the leader is

	// What only the leader does, its writes included: none is under way when the next
	// one begins.
	upstream.WithLeaderLifecycle(
		etcd.WriterParts,
		cells.KVStoreMeshParts,
		ours.KVStoreMesh,
		cell.Invoke(readyWhenReplicated),
	),

	// Last, so that it starts after, and stops before, all that the leader uses.
	leaderElectionCell,
)

// readiness makes /readyz say so: of the leader once what was configured at the start
// is replicated, of another replica once it is clear that it has to wait.
type readiness struct{ ready func() }

func newReadiness(state syncstate.SyncState) readiness {
	done := state.WaitForResource()
	state.Stop()
	return readiness{ready: sync.OnceFunc(func() { done(context.Background()) })}
}

func readyWhenReplicated(r readiness, replicated *kvstoremesh.Readiness, jobs job.Group) {
	jobs.Add(job.OneShot("readyz", func(ctx context.Context, health cell.Health) error {
		health.OK("Waiting for the clusters")
		select {
		case <-replicated.Ready():
			r.ready()
			health.OK("Ready")
		case <-ctx.Done():
		}
		return nil
	}))
}
