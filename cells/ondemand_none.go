// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_ondemand

package cells

import (
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/ipcache/ondemand"
)

// misses is nothing: an address that the map doesn't have stays unknown.
func misses(ondemand.Opener) cell.Cell { return cell.Group() }

// AgentHostMisses is nothing, likewise.
var AgentHostMisses = cell.Group()
