// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell exports the state tables to the cluster's etcd. The hive has to provide
// the tables (state.Cell), an *etcd.Client and the *etcd.Writer on it, which it
// also runs, and the cluster's wire.ClusterInfo and wire.MCSAPIConfig.
var Cell = cell.Module(
	"export",
	"State tables to the kvstore",

	// --cluster-region.
	cell.Config(DefaultConfig),
	// --clustermesh-default-global-namespace.
	cell.Config(filter.DefaultNamespacePolicy),

	// The Exporter, for its counts and to wait for the first export.
	cell.Provide(provideExporter),
	cell.Invoke((*Exporter).start),

	// cilium/cluster-config/<name>.
	cell.Invoke(keepClusterConfig),
)

// HeartbeatCell writes the heartbeat, through the hive's *etcd.Writer.
var HeartbeatCell = cell.Module(
	"heartbeat",
	"Heartbeat in the kvstore",

	cell.Invoke(func(jobs job.Group, writer *etcd.Writer) { jobs.Add(NewHeartbeat(writer).Job()) }),
)

type params struct {
	cell.In

	Log     *slog.Logger
	DB      *statedb.DB
	Writer  *etcd.Writer
	Cluster wire.ClusterInfo
	Policy  filter.NamespacePolicy
	Options Options `optional:"true"`

	Endpoints      statedb.Table[*state.Endpoint]
	Identities     statedb.Table[*state.Identity]
	Nodes          statedb.Table[*state.Node]
	Services       statedb.Table[*state.Service]
	ServiceExports statedb.Table[*state.ServiceExport]
	Namespaces     statedb.Table[*state.Namespace]
}

func provideExporter(p params) *Exporter {
	tables := state.Tables{
		Endpoints:      p.Endpoints,
		Identities:     p.Identities,
		Nodes:          p.Nodes,
		Services:       p.Services,
		ServiceExports: p.ServiceExports,
		Namespaces:     p.Namespaces,
	}
	policy := func(ns *state.Namespace) bool { return p.Policy.Global(ns.Annotations) }
	newScope := func(resource wire.Resource, refill func([]string)) scope {
		return p.Writer.Scope(etcd.ScopeConfig{
			Prefix:      wire.StatePrefix(resource, p.Cluster.Name),
			Canary:      wire.CanaryKey(resource, p.Cluster.Name, false),
			CanaryValue: func() []byte { return []byte(time.Now().Format(time.RFC3339)) },
			Lease:       true,
			Refill:      refill,
		})
	}
	e := newExporter(p.Log, p.DB, tables, p.Cluster.Name, p.Options, policy, newScope)
	e.admit = p.Writer.Admit
	return e
}

// start has the exporter run from the hive's start on.
func (e *Exporter) start(jobs job.Group) {
	jobs.Add(
		job.OneShot("export", e.run),
		job.OneShot("await-sync", e.awaitSync),
	)
}

// keepClusterConfig has the cluster config written and kept. As upstream has
// it, a cluster with ID 0, which is in no mesh, has none.
func keepClusterConfig(
	log *slog.Logger, jobs job.Group, client *etcd.Client, writer *etcd.Writer,
	cluster wire.ClusterInfo, mcsAPI wire.MCSAPIConfig, config Config,
) error {
	if cluster.ID == 0 {
		return nil
	}
	keeper, err := newClusterConfig(log, client, writer, cluster.Name,
		clusterConfigOf(cluster, mcsAPI.EnableMCSAPI, config.ClusterRegion))
	if err != nil {
		return err
	}
	jobs.Add(
		job.OneShot("cluster-config", keeper.write),
		job.OneShot("cluster-config-watch", keeper.watch),
	)
	return nil
}
