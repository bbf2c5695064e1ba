// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_memory

package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// datapath is a map in memory that no datapath reads, for trials and for kernels
// without BPF. Nothing tells of addresses that it doesn't have.
var datapath = cell.Group(
	ipcache.InMemoryCell,
	misses(ondemand.NotInKernel{}),
	cell.Provide(ipcacheStatus),
)
