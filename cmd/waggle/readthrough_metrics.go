// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/kvstoremesh/readthrough"
)

// readThroughMetrics are what a KVStoreMesh's read-through has answered.
var readThroughMetrics = cell.Provide(func(m *readthrough.Metrics) metricsOut { return collectorOut(m) })
