// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/waggle-mesh/waggle/cmd/waggle/benchmark"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

// newMeshCmds are the commands that run whole meshes, and so have all parts in them.
func newMeshCmds() []*cobra.Command {
	bench := benchmark.NewCmd()
	bench.GroupID = groupTools
	return []*cobra.Command{newRunCmd(), newScriptCmd(), bench}
}

func newRunCmd() *cobra.Command {
	opts := run.Options{RunDir: run.DefaultDir(), Backend: "auto", Out: os.Stdout}
	cmd := &cobra.Command{
		Use:   "run DIR",
		Short: "Run a whole mesh on this machine from directories of manifests",
		Long: `Runs a mesh of the clusters in DIR, one for each subdirectory, from manifests as
"kubectl get … -o yaml" prints them: ciliumnodes, ciliumidentities,
ciliumendpoints or ciliumendpointslices, services, endpointslices, namespaces,
serviceexports. With the ConfigMap cilium-config among them, cluster name and ID
are as in the real cluster.

Each cluster has an etcd, an exporter, a KVStoreMesh and an agent, each a process
of its own on loopback that may be killed and comes back. The first one also has an
in-cluster cache, from which its agent has what is its own. Edits of the manifests
are followed, and reported with the time they took to reach the other clusters'
maps. Ctrl-C ends everything and cleans up.`,
		Example: `  waggle run testdata/meshes/meadow`,
		GroupID: groupTools,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			opts.Mesh = args[0]
			opts.Terminal = term.IsTerminal(int(os.Stdout.Fd()))
			return run.Run(ctx, opts)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.RunDir, "run-dir", opts.RunDir, "Directory for the run's files: etcds, sockets, logs; removed at the end")
	flags.StringVar(&opts.Backend, "ipcache-backend", opts.Backend, `Where the agents' maps are: "bpf", "memory", or "auto" (BPF where permitted)`)
	flags.BoolVar(&opts.OnDemand, "enable-ondemand-resolution", false,
		"Have the agents resolve what packets of local pods (interfaces lxc+) miss, and what isn't pushed looked up behind their KVStoreMeshes")
	flags.BoolVar(&opts.Once, "once", false, "End when everything is synced and one lookup is proved")
	return cmd
}
