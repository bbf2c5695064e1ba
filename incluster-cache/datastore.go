// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The values of --datastore.
const (
	// DatastoreKubernetes reads this cluster's own state from Kubernetes.
	DatastoreKubernetes = "kubernetes"
	// DatastoreEtcd reads it from the etcd of an in-cluster cache.
	DatastoreEtcd = "etcd"
	// DatastoreNone leaves it to the program that has this hive; the tables have remote
	// clusters only.
	DatastoreNone = "none"
)

const (
	flagDatastore    = "datastore"
	flagRelistJitter = "incluster-cache-relist-jitter"
	flagRebalance    = "incluster-cache-rebalance-interval"
	flagStateDir     = "state-dir"
)

// DatastoreConfig says where an agent has its own cluster's state from. It is read
// once, at the start: there is one source, and no hand-over to another.
type DatastoreConfig struct {
	Datastore string `mapstructure:"datastore"`
	// RelistJitter is the longest wait before a list that follows an earlier one.
	RelistJitter time.Duration `mapstructure:"incluster-cache-relist-jitter"`
	// Rebalance is the mean time between two looks for a replica that the node
	// prefers to the one it reads.
	Rebalance time.Duration `mapstructure:"incluster-cache-rebalance-interval"`
	// StateDir has what an agent keeps for its next start; empty for nothing.
	StateDir string `mapstructure:"state-dir"`
}

// DefaultDatastoreConfig reads Kubernetes. The jitter is for the agents of a
// replica that died, some thousands at most, of which each lists some megabytes of
// those that are left: spread over two seconds that is what an etcd sends anyway.
var DefaultDatastoreConfig = DatastoreConfig{
	Datastore:    DatastoreKubernetes,
	RelistJitter: 2 * time.Second,
	Rebalance:    10 * time.Minute,
	StateDir:     "/var/run/waggle",
}

// withoutKubernetes is for an agent in a program that has no client of Kubernetes, which
// CacheOnlyCell provides: such an agent says so, and refuses --datastore=kubernetes.
type withoutKubernetes bool

// Flags registers the flags.
func (def DatastoreConfig) Flags(flags *pflag.FlagSet) {
	flags.String(flagDatastore, def.Datastore,
		`Where this cluster's own state is read from: "kubernetes", "etcd" for the in-cluster cache that --kvstore-opt names, or "none"`)
	flags.Duration(flagRelistJitter, def.RelistJitter,
		"Longest wait before everything is listed from another replica of the in-cluster cache")
	flags.Duration(flagRebalance, def.Rebalance,
		"Mean time between two looks for a replica of the in-cluster cache that this node prefers, as after a restart (0 for never)")
	flags.String(flagStateDir, def.StateDir, "Directory for what the agent keeps for its next start (none if empty)")
}

// validate refuses what contradicts itself, and gives the reason.
func (def DatastoreConfig) validate(store etcd.Config, manifests reading.Manifests, without withoutKubernetes) error {
	if def.RelistJitter < 0 {
		return fmt.Errorf("--%s=%v: must not be negative", flagRelistJitter, def.RelistJitter)
	}
	if def.Rebalance < 0 {
		return fmt.Errorf("--%s=%v: must not be negative", flagRebalance, def.Rebalance)
	}
	address := store.KVStoreOpt[etcd.OptAddress] != "" || store.KVStoreOpt[etcd.OptConfig] != ""
	switch def.Datastore {
	case DatastoreNone:
		if bool(without) && address {
			return fmt.Errorf("--kvstore-opt names an etcd for this cluster's state, which isn't read with --%s=%s: give --%s=%s to read it",
				flagDatastore, DatastoreNone, flagDatastore, DatastoreEtcd)
		}
	case DatastoreKubernetes:
		if without {
			return fmt.Errorf("--%s=%s: this program was built without a client of Kubernetes: give --%s=%s and the address of an in-cluster cache, or --%s=%s",
				flagDatastore, DatastoreKubernetes, flagDatastore, DatastoreEtcd, flagDatastore, DatastoreNone)
		}
		if address {
			return fmt.Errorf("--%s=%s reads this cluster's state from Kubernetes, and --kvstore-opt names an etcd for it: give --%s=%s to read that",
				flagDatastore, DatastoreKubernetes, flagDatastore, DatastoreEtcd)
		}
	case DatastoreEtcd:
		if manifests != "" {
			return fmt.Errorf("--%s=%s reads this cluster's state from etcd, and --k8s-manifests=%s names another source: there is one",
				flagDatastore, DatastoreEtcd, manifests)
		}
		if !address {
			return fmt.Errorf("--%s=%s needs the address of the in-cluster cache: --kvstore-opt %s=… or %s=…",
				flagDatastore, DatastoreEtcd, etcd.OptAddress, etcd.OptConfig)
		}
	default:
		return fmt.Errorf("--%s=%q: must be %s, %s or %s",
			flagDatastore, def.Datastore, DatastoreKubernetes, DatastoreEtcd, DatastoreNone)
	}
	return nil
}

// none says that this cluster's own state isn't taken in.
func (def DatastoreConfig) none() bool { return def.Datastore == DatastoreNone }

// etcd says whether the in-cluster cache is the source.
func (def DatastoreConfig) etcd() bool { return def.Datastore == DatastoreEtcd }

// errNoMesh is why a cluster without an ID can't have remote clusters.
var errNoMesh = errors.New("--cluster-id=0: a cluster that is to read others, as --clustermesh-config says, needs an ID and a name that no other has")

// validateCluster is for an agent's cluster, which may be in no mesh.
func validateCluster(cluster wire.ClusterInfo, mesh bool) error {
	if cluster.ID == 0 && mesh {
		return errNoMesh
	}
	return wire.ValidateCacheCluster(cluster)
}
