// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"time"

	"github.com/spf13/pflag"
)

// Config is upstream's (pkg/clustermesh/common), and converts from it. Upstream's package
// isn't imported for it, since that brings a client of Kubernetes into every program.
type Config struct {
	// ClusterMeshConfig is the directory with a file for each remote cluster; empty is
	// no mesh.
	ClusterMeshConfig string
	// ClusterMeshCacheTTL is how long what was read of a cluster stays while its etcd
	// doesn't answer; 0 is forever.
	ClusterMeshCacheTTL time.Duration
}

// Flags registers upstream's flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.String("clustermesh-config", def.ClusterMeshConfig, "Directory with a configuration file for each remote cluster")
	flags.Duration("clustermesh-cache-ttl", def.ClusterMeshCacheTTL,
		"How long what was read of a remote cluster stays while its etcd can't be reached, before it is withdrawn (0s for as long as that takes)")
}
