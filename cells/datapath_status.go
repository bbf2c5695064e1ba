// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package cells

import (
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// ipcacheStatus is the map's part of a process's status.
func ipcacheStatus(d *ipcache.Datapath) status.IPCacheFunc {
	return func() status.IPCache {
		stats := d.Stats()
		return status.IPCache{Map: d.String(), Capacity: stats.Capacity, Wanted: stats.Wanted, Overflow: stats.Overflow, Failed: stats.Failed}
	}
}

// OnDemandStatus is that of on-demand resolution, in a host's hive as in ours.
func OnDemandStatus(s *ondemand.Service) status.OnDemandFunc {
	return func() status.OnDemand {
		list, err := s.List()
		if err != nil {
			return status.OnDemand{} // it is off, or health says why it can't tell
		}
		out := status.OnDemand{Enabled: true, Entries: make(map[string]int), Waiting: list.Waiting,
			RefusedCIDRs: len(list.Refused), Blind: list.Blind}
		for i := range list.Entries {
			out.Entries[string(list.Entries[i].Kind)]++
		}
		for _, excess := range list.Excess {
			out.RefusedCIDRs += excess.Count
		}
		for _, away := range list.Away {
			out.Away = append(out.Away, away.Cluster)
		}
		return out
	}
}
