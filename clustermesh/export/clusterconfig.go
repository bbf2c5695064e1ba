// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import "github.com/waggle-mesh/waggle/clustermesh/wire"

// clusterConfigOf is what this cluster says about its etcd. As upstream has it,
// service exports are always declared on or off, never left out.
func clusterConfigOf(cluster wire.ClusterInfo, mcsAPI bool, region string) wire.ClusterConfig {
	return wire.ClusterConfig{
		ID: cluster.ID,
		Capabilities: wire.Capabilities{
			SyncedCanaries:        true,
			MaxConnectedClusters:  cluster.MaxConnectedClusters,
			ServiceExportsEnabled: &mcsAPI,
		},
		Region: region,
	}
}
