// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	"github.com/cilium/cilium/clustermesh-apiserver/clustermesh"
	"github.com/cilium/cilium/clustermesh-apiserver/option"
	"github.com/cilium/cilium/clustermesh-apiserver/syncstate"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ClusterMesh is the hive of "clustermesh": Kubernetes → etcd.
var ClusterMesh = cell.Module(
	"clustermesh",
	"Kubernetes to the kvstore of the cluster as ClusterMesh apiserver",

	infrastructure(option.PprofPortClusterMesh, defaults.GopsPortApiserver),
	common,
	cell.Config(wire.DefaultMCSAPIConfig),    // --clustermesh-enable-mcs-api
	cell.Config(synced.DefaultCRDSyncConfig), // --crd-wait-timeout

	kubernetes.ClientCell,
	cells.ExporterParts,
	metrics.Exporter,

	clustermesh.HealthAPIEndpointsCell, // /readyz
	cell.Invoke(readyWhenExported),

	// --cluster-users-enabled
	usersCell,
)

// readyWhenExported has /readyz say so once all that the cluster had at the start is in
// etcd.
func readyWhenExported(sync syncstate.SyncState, exporter *export.Exporter, jobs job.Group) {
	done := sync.WaitForResource()
	sync.Stop()
	jobs.Add(job.OneShot("readyz", func(ctx context.Context, health cell.Health) error {
		health.OK("Waiting for the first export")
		select {
		case <-exporter.Synced():
			done(ctx)
			health.OK("Ready")
		case <-ctx.Done():
		}
		return nil
	}))
}
