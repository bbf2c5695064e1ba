// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_embedded_etcd

package main

// There is no etcd to run.
var etcds []program
