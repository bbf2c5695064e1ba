// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_kubernetes

package main

// ownCluster is where an agent has its own cluster's state from.
const ownCluster = `Reads its own cluster from the in-cluster cache, with --datastore=etcd. Otherwise it
has remote clusters alone: this program was built without a client of Kubernetes.`

// Nothing begins at Kubernetes.
var exporters, caches []program
