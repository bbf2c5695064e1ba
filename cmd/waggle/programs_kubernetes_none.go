// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_kubernetes

package main

// Nothing begins at Kubernetes.
var exporters, caches []program
