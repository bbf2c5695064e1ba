// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package main

// cacheStore is the etcd of an in-cluster cache.
const cacheStore = `--kvstore-opt names the etcd: this
program was built without one of its own.`

// There is no etcd to run.
var etcds []program
