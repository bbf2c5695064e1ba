// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"slices"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// FlagClusterRegion is the flag of the cluster's region, which readers of its
// cluster config see.
const FlagClusterRegion = "cluster-region"

// Config of the exporter.
type Config struct {
	// ClusterRegion is the region that the cluster config names; empty is none. With one,
	// what pods say about their scope counts, so that pods have to be readable.
	ClusterRegion string `mapstructure:"cluster-region"`
}

// DefaultConfig names no region.
var DefaultConfig = Config{}

// Flags registers the flags with c's values as their defaults.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.String(FlagClusterRegion, c.ClusterRegion,
		"Region of this cluster, which its cluster configuration names to other clusters. "+
			"If it is set, the exporter reads pods, and needs permission to list and watch them: without it no endpoint is exported")
}

// Options is what differs between the mesh's etcd and the in-cluster cache's. A
// hive that provides none exports for the mesh.
type Options struct {
	// Resources are exported; nil is all that the mesh has. The others have
	// neither keys nor a canary.
	Resources []wire.Resource
	// AllNamespaces exports what is in any namespace or in none. The table of
	// namespaces isn't read then, and needn't be filled.
	AllNamespaces bool
	// AllServices exports services whether or not they are annotated as shared;
	// the value says which they are.
	AllServices bool
	// PushedOnly leaves the on-demand prefixes alone: nobody looks anything up, and
	// what pods say doesn't count.
	PushedOnly bool
	// NamedPorts exports the named ports of endpoints, which policy needs and
	// upstream's exporter leaves out.
	NamedPorts bool
}

func (o Options) exports(resource wire.Resource) bool {
	return o.Resources == nil || slices.Contains(o.Resources, resource)
}
