// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/clustermesh/wait"
	"github.com/cilium/cilium/pkg/dial"
	"github.com/cilium/cilium/pkg/kvstore"
	ipcachemap "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/hive/cell"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/bridge"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

const (
	flagDatastore    = "datastore"
	flagIngest       = "clustermesh-ingest"
	flagRelistJitter = "incluster-cache-relist-jitter"
	flagRebalance    = "incluster-cache-rebalance-interval"
)

// The values of --clustermesh-ingest.
const (
	ingestUpstream = "upstream"
	ingestWaggle   = "waggle"
)

// config are the flags that cilium-agent doesn't have.
type config struct {
	Datastore    string        `mapstructure:"datastore"`
	Ingest       string        `mapstructure:"clustermesh-ingest"`
	RelistJitter time.Duration `mapstructure:"incluster-cache-relist-jitter"`
	Rebalance    time.Duration `mapstructure:"incluster-cache-rebalance-interval"`
}

// defaultConfig leaves cilium-agent as it is: nothing is read that it doesn't read itself.
var defaultConfig = config{
	Datastore:    inclustercache.DatastoreNone,
	Ingest:       ingestUpstream,
	RelistJitter: inclustercache.DefaultDatastoreConfig.RelistJitter,
	Rebalance:    inclustercache.DefaultDatastoreConfig.Rebalance,
}

// Flags registers the flags.
func (def config) Flags(flags *pflag.FlagSet) {
	flags.String(flagDatastore, def.Datastore,
		`Where the tables have this cluster's own state from: "none", "kubernetes" (beside the agent's own watches), or "etcd", `+
			`the in-cluster cache that --kvstore-opt names (instead of them)`)
	flags.String(flagIngest, def.Ingest,
		`Who reads the remote clusters of --clustermesh-config: "upstream" (the agent's own ClusterMesh) or "waggle"`)
	flags.Duration(flagRelistJitter, def.RelistJitter,
		"Longest wait before everything is listed from another replica of the in-cluster cache")
	flags.Duration(flagRebalance, def.Rebalance,
		"Mean time between two looks for a replica of the in-cluster cache that this node prefers, as after a restart (0 for never)")
}

// options refuse values that aren't any. The --datastore is checked where it is used.
func options(c config) (bridge.Options, error) {
	if c.Ingest != ingestUpstream && c.Ingest != ingestWaggle {
		return bridge.Options{}, fmt.Errorf("--%s=%q: must be %s or %s", flagIngest, c.Ingest, ingestUpstream, ingestWaggle)
	}
	return bridge.Options{
		Local:  c.Datastore == inclustercache.DatastoreEtcd,
		Remote: c.Ingest == ingestWaggle,
	}, nil
}

// statusHost has the status tell of our cells alone, and of nothing while they are off.
func statusHost(o bridge.Options, c config) status.Host {
	return status.Host{Module: moduleID, Off: !o.Remote && c.Datastore == inclustercache.DatastoreNone}
}

// etcdConfig has the address only where it is the in-cluster cache's: --kvstore-opt may
// be for the kvstore of the agent itself. Of that one's options some are none of ours.
func etcdConfig(store kvstore.Config, c config) (etcd.Config, error) {
	cfg := etcd.Config{KVStoreLeaseTTL: store.KVStoreLeaseTTL}
	if c.Datastore != inclustercache.DatastoreEtcd {
		return cfg, nil
	}
	if store.KVStore != "" {
		return cfg, fmt.Errorf("--%s=%s reads this cluster's state from its cache, and --kvstore=%s names another source: there is one",
			flagDatastore, c.Datastore, store.KVStore)
	}
	cfg.KVStoreOpt = store.KVStoreOpt
	return cfg, nil
}

func datastoreConfig(c config, agent *option.DaemonConfig) inclustercache.DatastoreConfig {
	return inclustercache.DatastoreConfig{
		Datastore: c.Datastore, RelistJitter: c.RelistJitter, Rebalance: c.Rebalance,
		StateDir: filepath.Join(agent.RunDir, "waggle"),
	}
}

func kubernetesConfig(agent *option.DaemonConfig) kubernetes.Config {
	return kubernetes.Config{EnableCiliumEndpointSlice: agent.EnableCiliumEndpointSlice}
}

func ingestConfig(upstream wait.TimeoutConfig) ingest.Config {
	return ingest.Config{ClusterMeshSyncTimeout: upstream.ClusterMeshSyncTimeout}
}

// meshConfig is, for our cells, without remote clusters where the agent reads them.
func meshConfig(upstream common.Config, o bridge.Options) remote.Config {
	if !o.Remote {
		upstream.ClusterMeshConfig = ""
	}
	return remote.Config(upstream)
}

// meshMetrics are the agent's own.
func meshMetrics(upstream common.Metrics) remote.ClusterMetrics {
	return remote.ClusterMetrics(upstream)
}

// mapConfig says where the agent's map is, and where ours would be.
func mapConfig(agent *option.DaemonConfig) ipcache.Config {
	cfg := ipcache.DefaultConfig
	cfg.Backend, cfg.Capacity = ipcache.BackendBPF, ipcachemap.MaxEntries
	cfg.BPFRoot = cmp.Or(agent.BPFRoot, cfg.BPFRoot)
	cfg.EnableIPv4, cfg.EnableIPv6 = agent.EnableIPv4, agent.EnableIPv6
	return cfg
}

// onDemand is none in a build without on-demand resolution.
type onDemand struct {
	cell.In

	Config ondemand.Config `optional:"true"`
}

// validateOnDemand refuses what can't work: what is resolved is looked up over the
// connections to remote clusters that are ours.
func validateOnDemand(lc cell.Lifecycle, c config, misses onDemand) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		if misses.Config.Enable && c.Ingest != ingestWaggle {
			return fmt.Errorf("--enable-ondemand-resolution needs --%s=%s, whose connections it asks over", flagIngest, ingestWaggle)
		}
		return nil
	}})
}

// dialer finds Services without the datapath, as the agent itself does.
func dialer(log *slog.Logger, resolver dial.Resolver) remote.Dialer {
	resolve := dial.NewContextDialer(log, resolver)
	return func(ctx context.Context, address string) (net.Conn, error) {
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		return resolve(ctx, address)
	}
}
