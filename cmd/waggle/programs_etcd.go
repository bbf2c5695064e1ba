// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_embedded_etcd

package main

import (
	"github.com/cilium/cilium/clustermesh-apiserver/health"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells"
)

// cacheStore is the etcd of an in-cluster cache.
const cacheStore = `The etcd is embedded, and holds nothing that isn't
made again at the next start; --kvstore-opt names an external one instead.`

// What is an etcd itself.
var etcds = []program{
	{
		name: "etcd", short: "Run an embedded etcd for data that can be made again",
		long: `Runs a real etcd of one member, tuned for a content that is a copy: it does not
sync to disk, takes large transactions, compacts by itself, and takes a random
cluster token for each new data directory.`,
		cells: cells.Etcd,
		// What is read makes garbage, kilobytes for a key, however few keys there are.
		gcIdle: 64 << 20,
		ready:  cell.Provide(func() []health.EndpointFunc { return readyEndpoint(func() bool { return true }) }),
	},
}
