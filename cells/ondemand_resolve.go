// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_ondemand

package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// misses is what is done about addresses that the map doesn't have.
func misses(opener ondemand.Opener) cell.Cell {
	return cell.Group(ondemand.NewCell(opener), cell.Provide(onDemandStatus))
}

// AgentHostMisses is what is done about addresses that cilium-agent's own map doesn't have.
var AgentHostMisses = cell.Group(
	ipcache.ReadOnlyCell,
	cell.Provide(func() ondemand.InAgent { return true }),
	misses(ondemand.InKernel{}),
)

// onDemandStatus is the part of on-demand resolution in a process's status.
func onDemandStatus(s *ondemand.Service) status.OnDemandFunc {
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
