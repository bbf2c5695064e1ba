// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package scripts runs whole meshes by script: the hives of every part of every
// cluster in one process, on real embedded etcds, as a txtar file tells it. It
// is what `go test` runs testdata/scripts with, and "waggle script" any file.
//
//	etcd/start c1 c2
//	exporter/start c1 --cluster-id=1     c1's Kubernetes → etcd c1
//	kvstoremesh/start c2 --cluster-id=2  other etcds → etcd c2
//	agent/start c2                       etcd c2 → tables → ipcache map
//	cache/start c1 --cluster-id=1        c1's Kubernetes → etcd c1-cache
//	agent/start c1 --cache               etcd c1-cache → tables → ipcache map
//	mesh/connect c2 c1                   c2 gets to know c1
//
//	c1/k8s/add pod.yaml
//	c2/agent/db/cmp endpoints expected.table
//
// A command that belongs to one part bears the part's name, and is otherwise
// what the part's own shell has, or what upstream's script tests call it:
//
//	CLUSTER/k8s/…          the cluster's Kubernetes (k8s/add, k8s/delete, …; k8s/churn)
//	ETCD/kvstore/…         an etcd (kvstore/list, kvstore/update, …)
//	CLUSTER/exporter/…     the hives (db/cmp, db/show, ipcache/get, …)
//	CLUSTER/kvstoremesh/…
//	CLUSTER/cache/…
//	CLUSTER/agent/…
//
// Each client reaches its etcd over a link of its own, which a script can cut,
// heal, and have lead elsewhere, and which loses connections at random where
// Options.Faults says so. What a script itself does goes past the links.
//
//	engine.go     the engine, and a file's way through it
//	mesh.go       all that a script has started, by name
//	cluster.go    one cluster: its Kubernetes, and the parts it may have
//	part.go       one hive, and its commands
//	churn.go      what changes in a cluster's Kubernetes while a script goes on
//	etcd.go       one etcd
//	link.go       the way to an etcd
//	commands.go   mesh/…, net/… and the parts; commands_etcd.go etcd/… and kvstore/…
package scripts
