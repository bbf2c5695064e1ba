// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// ondemandMetrics are what an agent's on-demand resolution does; there are none while it
// is off.
var ondemandMetrics = cell.Provide(func(m *ondemand.Metrics) metricsOut { return collectorOut(m) })
