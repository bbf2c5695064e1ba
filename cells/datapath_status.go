// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package cells

import (
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/ipcache"
)

// ipcacheStatus is the map's part of a process's status.
func ipcacheStatus(d *ipcache.Datapath) status.IPCacheFunc {
	return func() status.IPCache {
		stats := d.Stats()
		return status.IPCache{Map: d.String(), Capacity: stats.Capacity, Wanted: stats.Wanted, Overflow: stats.Overflow, Failed: stats.Failed}
	}
}
