// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// DatastoreCell chooses where an agent has its own cluster's state from. The hive
// may have kubernetes.Cell as well, which it turns off where the cache is chosen; it has
// to provide the tables' state.Writer, etcd.Config, the cluster's wire.ClusterInfo
// and remote.Cell.
var DatastoreCell = cell.Module(
	"datastore",
	"State of this cluster from Kubernetes or from its cache",

	// --datastore and others.
	cell.Config(DefaultDatastoreConfig),

	datastoreParts,
)

// CacheOnlyCell is DatastoreCell for a program that has no client of Kubernetes.
var CacheOnlyCell = cell.Module(
	"datastore",
	"State of this cluster from its cache or none",

	cell.Config(cacheOnlyConfig()),
	cell.Provide(func() withoutKubernetes { return true }),

	datastoreParts,
)

// cacheOnlyConfig reads nothing unless it is told to.
func cacheOnlyConfig() DatastoreConfig {
	def := DefaultDatastoreConfig
	def.Datastore = DatastoreNone
	return def
}

// DatastoreParts is DatastoreCell without the flags of DatastoreConfig, which a hive
// provides that has a --state-dir of its own.
var DatastoreParts = cell.Module(
	"datastore",
	"State of this cluster from Kubernetes or from its cache",

	datastoreParts,
)

var datastoreParts = cell.Group(
	// --datastore-snapshot-interval.
	cell.Config(DefaultSnapshotConfig),
	// Contradictions are refused before anything else is started.
	cell.Invoke(validateDatastore),
	// What kubernetes.Cell reads, if anything.
	cell.Provide(kubernetesOptions),
	cell.Invoke(registerDatastore),
)

// NodeName replaces the name by which an agent chooses its replica, if a hive has
// one: the environment's K8S_NODE_NAME or else the host's name.
type NodeName string

// Dialer replaces the dialer of connections to the cache, if a hive has one. The
// address is host:port, or unix:/path. It is called concurrently.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// kubernetesOptions have Kubernetes fill what the cache would. Without any, an
// agent has remote clusters' state only.
func kubernetesOptions(cfg DatastoreConfig) reading.Options {
	return reading.Options{Off: cfg.etcd() || cfg.none(), Optional: true, Resources: wire.CacheResources}
}

// readManifests are what kubernetes.Cell reads instead of an API server.
type readManifests struct {
	cell.In

	From    reading.Manifests `optional:"true"`
	Without withoutKubernetes `optional:"true"`
}

// validateDatastore reports at start, so that commands which only inspect the hive
// work.
func validateDatastore(lc cell.Lifecycle, cfg DatastoreConfig, snapshots SnapshotConfig, store etcd.Config, manifests readManifests, cluster wire.ClusterInfo, mesh remote.Configured) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		if cfg.none() && !bool(mesh) {
			return cfg.validate(store, manifests.From, manifests.Without) // nothing is made of the cluster's name or ID
		}
		return errors.Join(validateCluster(cluster, bool(mesh)), cfg.validate(store, manifests.From, manifests.Without), snapshots.validate())
	}})
}

type datastoreParams struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Config    DatastoreConfig
	Snapshots SnapshotConfig
	Etcd      etcd.Config
	Cluster   wire.ClusterInfo
	DB        *statedb.DB
	Writer    *state.Writer
	Services  reading.ServiceReader `optional:"true"` // none without Kubernetes
	Reads     reading.From          `optional:"true"`
	Node      NodeName              `optional:"true"`
	Dialer    Dialer                `optional:"true"`
	Without   withoutKubernetes     `optional:"true"`
}

// registerDatastore adds what the choice makes run.
func registerDatastore(p datastoreParams) {
	switch {
	case p.Config.none():
		if p.Without {
			p.Jobs.Add(job.OneShot("announce-none", p.announceNone))
		}
		return
	case p.Config.etcd():
		p.registerEtcd()
		return
	}
	r := &reflected{log: p.Log, db: p.DB, writer: p.Writer, cluster: p.Cluster, from: p.Reads, since: time.Now()}
	p.Jobs.Add(
		job.OneShot("announce-kubernetes", r.announce),
		job.Timer("reflect-status", r.update, reflectedInterval),
	)
}

// announceNone says once that this cluster's state isn't there, and why.
func (p *datastoreParams) announceNone(_ context.Context, health cell.Health) error {
	p.Log.Info("Not taking in this cluster's own state: this program was built without Kubernetes, and --datastore=etcd isn't given")
	health.OK("Not taking in this cluster's own state: built without Kubernetes, and --datastore=etcd isn't given")
	return nil
}

func (p *datastoreParams) registerEtcd() {
	f := &follower{
		log: p.Log, cluster: p.Cluster, node: p.node(), dial: dialAddress,
		rebalance: p.Config.Rebalance, filling: newFilling,
		source: newSource(p.Log, p.Writer, p.Cluster, time.Now()),
		local: ingest.NewLocal(ingest.Options{
			Log: p.Log, Writer: p.Writer, Local: p.Cluster, RelistJitter: p.Config.RelistJitter,
		}),
		directory: &directory{
			log: p.Log, cluster: p.Cluster, stateDir: p.Config.StateDir, backoff: newAskBackoff(),
			reader: p.Services, db: p.DB, services: p.Writer.Tables().Services,
		},
	}
	if p.Services == nil {
		f.directory.reader = noReader{}
	}
	if p.Dialer != nil {
		f.dial = p.Dialer
	}
	p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) (err error) {
		if f.directory.etcd, err = withPorts(p.Etcd).Client(); err != nil {
			return err
		}
		if s := p.snapshots(f.local); s != nil {
			s.restore() // before anything else has a look at the tables
			p.Jobs.Add(
				job.OneShot("snapshot", s.run),
				job.OneShot("expire-restored", func(ctx context.Context, health cell.Health) error {
					health.OK("Waiting for the identities of what was restored")
					if f.local.ExpireRestored(ctx); ctx.Err() == nil {
						health.OK("What was restored waits for nothing any more")
					}
					return nil
				}),
			)
		}
		p.Jobs.Add(job.OneShot(state.DatastoreJob, f.run))
		return nil
	}})
}

// withPorts adds the port to Services among the addresses that leave it out, which
// no other endpoint may.
func withPorts(store etcd.Config) etcd.Config {
	addresses := strings.Split(store.KVStoreOpt[etcd.OptAddress], ",")
	for i, address := range addresses {
		if s, ok := parseService(address); ok {
			addresses[i] = s.endpoint
		}
	}
	store.KVStoreOpt = maps.Clone(store.KVStoreOpt)
	if store.KVStoreOpt[etcd.OptAddress] != "" {
		store.KVStoreOpt[etcd.OptAddress] = strings.Join(addresses, ",")
	}
	return store
}

// snapshots is nil where none are kept.
func (p *datastoreParams) snapshots(local *ingest.Local) *snapshots {
	if p.Config.StateDir == "" || p.Snapshots.Interval == 0 {
		return nil
	}
	program, err := programID(runningProgram)
	if err != nil {
		p.Log.Warn("What is restored from a snapshot will be listed as well", "error", err)
	}
	return &snapshots{log: p.Log, file: newSnapshotFile(p.Config.StateDir), interval: p.Snapshots.Interval,
		cluster: p.Cluster, local: local, writer: p.Writer, program: program}
}

func (p *datastoreParams) node() string {
	if p.Node != "" {
		return string(p.Node)
	}
	if name := os.Getenv("K8S_NODE_NAME"); name != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil {
		p.Log.Warn("This host has no name, by which its replica of the cache would be chosen", "error", err)
	}
	return name
}

// addressOf is what is dialled for an endpoint.
func addressOf(endpoint string) string {
	scheme, rest, found := strings.Cut(endpoint, "://")
	switch {
	case !found:
		return endpoint
	case scheme == "unix" || scheme == "unixs":
		return "unix:" + rest
	}
	return strings.TrimSuffix(rest, "/")
}
