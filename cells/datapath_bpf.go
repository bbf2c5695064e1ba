// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_memory

package cells

import "github.com/waggle-mesh/waggle/ipcache"

// datapath is the kernel's map where that is permitted, see --ipcache-backend.
var datapath = ipcache.Cell
