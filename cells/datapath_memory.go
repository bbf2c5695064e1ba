// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_memory

package cells

import "github.com/waggle-mesh/waggle/ipcache"

// datapath is a map in memory that no datapath reads, for trials and for kernels
// without BPF.
var datapath = ipcache.InMemoryCell
