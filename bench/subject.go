// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strconv"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// subject is a program that does what KVStoreMesh does: with the same sources
// and an empty local etcd, it is measured from its start until that is complete.
type subject struct {
	// name is that of its figures in a report.
	name string
	// argv is its command line.
	argv func(environment) []string
	// canaries are the resources whose canaries it writes, for each cluster,
	// when they are complete.
	canaries []wire.Resource
}

// environment is what a subject finds.
type environment struct {
	mesh Mesh
	// clusterMeshConfig is the directory of the sources' etcd configurations.
	clusterMeshConfig string
	// localConfig is the etcd configuration file of the local etcd.
	localConfig string
}

// resourcesOfV119 are those of upstream's schema, version 1.19.
var resourcesOfV119 = []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints, wire.Services, wire.ServiceExports}

// waggle is our own KVStoreMesh. It is asked for nothing that the one of a user
// doesn't have.
func waggle(program string) subject {
	return subject{
		name: "waggle",
		argv: func(env environment) []string {
			return []string{program, "kvstoremesh",
				"--cluster-name=" + localName,
				"--cluster-id=" + strconv.Itoa(localID),
				fmt.Sprintf("--max-connected-clusters=%d", env.mesh.MaxConnectedClusters()),
				"--clustermesh-config=" + env.clusterMeshConfig,
				"--kvstore-opt=etcd.config=" + env.localConfig,
				"--health-port=0",
			}
		},
		canaries: resourcesOfV119,
	}
}
