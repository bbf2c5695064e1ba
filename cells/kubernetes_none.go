// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_kubernetes

package cells

import (
	"github.com/cilium/hive/cell"

	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// An agent has its own cluster's state from the in-cluster cache, with --datastore=etcd,
// or not at all. There is no exporter and no in-cluster cache.
var (
	kubernetesClient    = cell.Group()
	fromKubernetes      = cell.Group()
	fromKubernetesParts = cell.Group()
	datastore           = inclustercache.CacheOnlyCell
)
