// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import "github.com/spf13/pflag"

// FlagClusterRegion is the flag of the cluster's region, which readers of its
// cluster config see.
const FlagClusterRegion = "cluster-region"

// Config of the exporter.
type Config struct {
	// ClusterRegion is the region that the cluster config names; empty is none.
	ClusterRegion string `mapstructure:"cluster-region"`
}

// DefaultConfig names no region.
var DefaultConfig = Config{}

// Flags registers the flags with c's values as their defaults.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.String(FlagClusterRegion, c.ClusterRegion,
		"Region of this cluster, which its cluster configuration names to other clusters")
}

// Options is what differs between the mesh's etcd and the in-cluster cache's.
// A hive that provides none exports for the mesh.
type Options struct {
	// NamedPorts exports the named ports of endpoints, which policy needs and
	// upstream's exporter leaves out.
	NamedPorts bool
}
