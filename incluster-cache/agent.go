// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// DatastoreCell chooses where an agent has its own cluster's state from. The hive
// has kubernetes.Cell as well, which it turns off where the cache is chosen; it has
// to provide the tables' state.Writer, etcd.Config, the cluster's wire.ClusterInfo
// and remote.Cell.
var DatastoreCell = cell.Module(
	"datastore",
	"State of this cluster from Kubernetes or from its cache",

	// --datastore and others.
	cell.Config(DefaultDatastoreConfig),
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
func kubernetesOptions(cfg DatastoreConfig) kubernetes.Options {
	return kubernetes.Options{Off: cfg.etcd(), Optional: true, Resources: wire.CacheResources}
}

// validateDatastore reports at start, so that commands which only inspect the hive
// work.
func validateDatastore(lc cell.Lifecycle, cfg DatastoreConfig, store etcd.Config, kube kubernetes.Config, cluster wire.ClusterInfo, mesh remote.Configured) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		return errors.Join(validateCluster(cluster, bool(mesh)), cfg.validate(store, kube))
	}})
}

type datastoreParams struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Config    DatastoreConfig
	Etcd      etcd.Config
	Cluster   wire.ClusterInfo
	Writer    *state.Writer
	Node      NodeName `optional:"true"`
	Dialer    Dialer   `optional:"true"`
}

// registerDatastore adds what the choice makes run.
func registerDatastore(p datastoreParams) {
	if p.Config.etcd() {
		p.registerEtcd()
	}
}

func (p *datastoreParams) registerEtcd() {
	f := &follower{
		log: p.Log, cluster: p.Cluster, node: p.node(), dial: dialAddress, backoff: newBackoff,
		source: newSource(p.Log, p.Writer, p.Cluster, time.Now()),
		local: ingest.NewLocal(ingest.Options{
			Log: p.Log, Writer: p.Writer, Local: p.Cluster, RelistJitter: p.Config.RelistJitter,
		}),
	}
	if p.Dialer != nil {
		f.dial = p.Dialer
	}
	p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) (err error) {
		if f.etcd, err = p.Etcd.Client(); err != nil {
			return err
		}
		for _, endpoint := range f.etcd.Endpoints {
			f.replicas = append(f.replicas, replica{endpoint: endpoint, address: addressOf(endpoint)})
		}
		p.Jobs.Add(job.OneShot("follow-cache", f.run))
		return nil
	}})
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
