// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_memory

package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// datapath is the kernel's map where that is permitted, see --ipcache-backend, and what
// is done about addresses that it doesn't have.
var datapath = cell.Group(
	ipcache.Cell,
	misses(ondemand.InKernel{}),
	cell.Provide(ipcacheStatus),
)
