// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_embedded_etcd

package cells

import "github.com/waggle-mesh/waggle/cells/etcd"

// Etcd is the hive of "waggle etcd": an embedded etcd of its own process.
var Etcd = etcd.ServerCell
