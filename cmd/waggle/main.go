// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Waggle distributes Cilium's state (which IP has which security identity, on
// which node, behind which service) within a cluster and between clusters.
//
// Each part is a hive of cells, and runs as a process of its own: see
// "waggle --help", and "waggle run" for a whole mesh on this machine.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	if err := newRootCmd().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "waggle:", err)
		os.Exit(1)
	}
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "waggle",
		Short: "Distribute Cilium's state within and between clusters",
		Long: `Waggle distributes Cilium's state, which IP has which security identity on which
node, within a cluster and between clusters:

  Kubernetes ──▶ waggle clustermesh ──▶ etcd ──▶ waggle kvstoremesh ──▶ etcd ──▶ waggle agent ──▶ BPF map
  (the source cluster)                          (every other cluster)`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: groupParts, Title: "Parts of a mesh, each a process:"},
		&cobra.Group{ID: groupTools, Title: "Tools:"},
	)
	for _, p := range programs {
		root.AddCommand(newProgramCmd(p))
	}
	root.AddCommand(newStatusCmd(), newFilterCmd(), newOnDemandCmd(), newShellCmd())
	if meshes := newMeshCmds(); len(meshes) > 0 {
		root.Long += "\n\nTo see it work: waggle run testdata/meshes/meadow"
		root.AddCommand(meshes...)
	}
	return root
}

// Groups of commands in the help.
const (
	groupParts = "parts"
	groupTools = "tools"
)
