// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package cells

import "github.com/cilium/hive/cell"

// ownServer is nothing: a cache needs --kvstore-opt, and says so.
var ownServer = cell.Group()
