// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package apiserver makes upstream's clustermesh-apiserver out of Waggle's cells: the
// same program for those who deploy it, look at it and configure it, by the cells that
// upstream exports for that, and another engine within.
//
//	command.go      the subcommands
//	common.go       what its hives have in common: flags, metrics, health, shell
//	exporter.go     the hive of "clustermesh"
//	kvstoremesh.go  the hive of "kvstoremesh"
//	leader.go       one of its replicas works, the others wait
//	status.go       remote clusters as upstream's REST API shows them
//	users.go        etcd users for remote clusters
//	unused.go       flags that mean nothing here, and say so
//	cache.go        the hive of "incluster-cache", which upstream hasn't got
package apiserver
