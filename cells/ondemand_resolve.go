// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_ondemand

package cells

import "github.com/waggle-mesh/waggle/ipcache/ondemand"

// misses is what is done about addresses that the map doesn't have.
var misses = ondemand.NewCell
