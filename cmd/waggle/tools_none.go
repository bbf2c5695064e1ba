// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build waggle_no_kubernetes || waggle_no_embedded_etcd

package main

import "github.com/spf13/cobra"

// newMeshCmds are none: a program without one of the parts runs no whole mesh.
func newMeshCmds() []*cobra.Command { return nil }
