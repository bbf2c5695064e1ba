// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell exports the state tables to the cluster's etcd, for the mesh. The hive has
// to provide the tables (state.Cell), an *etcd.Client and the *etcd.Writer on it,
// which it also runs, and the cluster's wire.ClusterInfo and wire.MCSAPIConfig.
var Cell = cell.Module(
	"export",
	"State tables to the kvstore",

	// --cluster-region.
	cell.Config(DefaultConfig),
	// --clustermesh-default-global-namespace.
	cell.Config(filter.DefaultNamespacePolicy),
	// --clustermesh-sync-mode.
	cell.Config(filter.DefaultWorkloadPolicy),

	exporter,

	// Says that --cluster-region is missing.
	cell.Invoke(registerRegion),

	// The table "exports".
	cell.Invoke(keepCounts),

	// cilium/cluster-config/<name>.
	cell.Invoke(keepClusterConfig),

	// filter/explain, filter/status.
	cell.Provide(filterCommands),
)

// LocalCell exports them for the cluster's own agents, as the Options say that the
// hive provides. Nothing is filtered by namespaces, and there is no cluster config:
// no other cluster is to read this.
var LocalCell = cell.Module(
	"export",
	"State tables to the kvstore of the cluster itself",

	exporter,

	// The table "exports".
	cell.Invoke(keepCounts),
)

// PrivateLocalCell is LocalCell within the module around it, which has an etcd of its own:
// nothing else in the hive sees its Exporter.
var PrivateLocalCell = cell.Group(
	cell.ProvidePrivate(provideExporter),
	cell.Invoke((*Exporter).start),
)

// exporter provides the Exporter, for its counts and to wait for the first export,
// and runs it.
var exporter = cell.Group(
	cell.Provide(provideExporter),
	cell.Invoke((*Exporter).start),
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
	Policy  filter.NamespacePolicy `optional:"true"`
	Mode    filter.WorkloadPolicy  `optional:"true"`
	Config  Config                 `optional:"true"`
	Options Options                `optional:"true"`

	Endpoints      statedb.Table[*state.Endpoint]
	Identities     statedb.Table[*state.Identity]
	Nodes          statedb.Table[*state.Node]
	Services       statedb.Table[*state.Service]
	ServiceExports statedb.Table[*state.ServiceExport]
	Namespaces     statedb.Table[*state.Namespace]
	Workloads      statedb.Table[*state.Workload]
}

func provideExporter(p params) *Exporter {
	tables := state.Tables{
		Endpoints:      p.Endpoints,
		Identities:     p.Identities,
		Nodes:          p.Nodes,
		Services:       p.Services,
		ServiceExports: p.ServiceExports,
		Namespaces:     p.Namespaces,
		Workloads:      p.Workloads,
	}
	by := filters{
		namespace: func(ns *state.Namespace) bool { return p.Policy.Global(ns.Annotations) },
		workload:  filter.DefaultWorkloadPolicy,
	}
	if !p.Options.PushedOnly {
		by.workload, by.region = p.Mode, p.Config.ClusterRegion
	}
	e := newExporter(p.Log, p.DB, tables, p.Cluster.Name, p.Options, by, newScopes(p.Writer, p.Cluster.Name))
	e.admit = p.Writer.Admit
	return e
}

// registerRegion says once that there is no region, with which the scopes of pods would
// mean something.
func registerRegion(log *slog.Logger, config Config, policy filter.WorkloadPolicy, lc cell.Lifecycle) {
	if config.ClusterRegion != "" {
		return
	}
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		if policy.Mode == filter.SyncOptIn {
			log.Info("Without a region pods are asked whether they are synced, and not how far", "flag", "--"+FlagClusterRegion)
		} else {
			log.Info("Without a region pods aren't asked how far they are synced, and aren't read", "flag", "--"+FlagClusterRegion)
		}
		return nil
	}})
}

// newScopes makes the Scopes of a cluster's places.
func newScopes(writer *etcd.Writer, cluster string) func(placeName, func([]string)) scope {
	return func(name placeName, refill func([]string)) scope {
		complete := make(chan struct{})
		cfg := etcd.ScopeConfig{
			Prefix:     onDemandPrefix(name.resource),
			OnComplete: sync.OnceFunc(func() { close(complete) }),
			Lease:      true,
			Refill:     refill,
		}
		if !name.onDemand {
			cfg.Prefix = wire.StatePrefix(name.resource, cluster)
			cfg.Canary = wire.CanaryKey(name.resource, cluster, false)
			cfg.CanaryValue = func() []byte { return []byte(time.Now().Format(time.RFC3339)) }
		}
		return etcdScope{complete: complete, Scope: writer.Scope(cfg)}
	}
}

// onDemandPrefix is that of what is looked up. Nobody watches it, so that it has no
// canary.
func onDemandPrefix(resource wire.Resource) string {
	if resource == wire.Identities {
		return wire.OnDemandIdentityPrefix
	}
	return wire.OnDemandEndpointPrefix
}

// etcdScope is a Scope that can be waited for.
type etcdScope struct {
	*etcd.Scope
	complete chan struct{}
}

// AwaitComplete waits until etcd has had all of it once, canary included.
func (s etcdScope) AwaitComplete(ctx context.Context) error {
	select {
	case <-s.complete:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// IsComplete is AwaitComplete without waiting.
func (s etcdScope) IsComplete() bool {
	select {
	case <-s.complete:
		return true
	default:
		return false
	}
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
	value, err := wire.MarshalClusterConfig(clusterConfigOf(cluster, mcsAPI.EnableMCSAPI, config.ClusterRegion))
	if err != nil {
		return fmt.Errorf("encoding the cluster config of %q: %w", cluster.Name, err)
	}
	jobs.Add(NewKeptKey(log, client, writer, wire.ClusterConfigPrefix, cluster.Name, value).Jobs("cluster-config")...)
	return nil
}
