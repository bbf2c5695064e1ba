// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cilium/hive/shell"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

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

func newStatusCmd() *cobra.Command {
	dir, sockets, output, filters := run.DefaultDir(), []string(nil), outputText, false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what each cluster of a running mesh knows of the others",
		Long: `Shows for each pair of clusters of a mesh started with "waggle run" whether they
are connected and synced, and how much one knows of the other. LAG is the number
of keys by which that differs from what the remote cluster's etcd holds, less what
is skipped by region.

Below that it shows where the agent of a cluster with an in-cluster cache has its
own cluster's state from: which replica it reads, and since when it does, or doesn't.

Where filters leave anything out, or with --filters, it shows how much: per cluster
and resource what is pushed, on demand, or kept at home by a namespace that isn't
global; the pods whose settings are malformed; and what is skipped by region.

Of agents that resolve on demand it shows how much they have resolved, how much waits,
and for which clusters they can't.

For each process it shows what it has yet to write to its etcd, for how long that has
waited, and why whatever isn't well isn't, with the time since when it was.

With --shell-sock-path it shows all of that of single processes: of exporters,
in-cluster caches, KVStoreMeshes and agents, wherever their cells are compiled in. Their
shells have the same as waggle/status.

The exit status is 1 if anything isn't well, or can't be asked.`,
		Example: `  waggle status
  waggle status -o json --shell-sock-path=/var/run/cilium/shell.sock`,
		GroupID: groupTools,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(sockets) > 0 {
				return printProcesses(out, sockets, output, filters)
			}
			layout, err := run.ReadLayout(dir)
			if err != nil {
				return err
			}
			status, err := run.NewStatus(layout)
			if err != nil {
				return err
			}
			defer status.Close()
			report := status.Report(context.Background())
			if output == outputJSON {
				return errors.Join(printJSON(out, report), report.Unhealthy())
			}
			return errors.Join(report.Print(out, filters), report.Unhealthy())
		},
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "Directory of the run")
	cmd.Flags().StringSliceVar(&sockets, "shell-sock-path", nil, "Sockets of the shells of processes to ask instead")
	cmd.Flags().BoolVar(&filters, "filters", false, "Show what filters leave out even where that is nothing")
	cmd.Flags().StringVarP(&output, "output", "o", output, "How it is printed: text or json")
	return cmd
}

func printProcesses(out io.Writer, sockets []string, output string, filters bool) error {
	all, unwell := run.AskProcesses(sockets)
	if output == outputJSON {
		return errors.Join(printJSON(out, all), unwell)
	}
	for i := range all {
		if len(sockets) > 1 {
			fmt.Fprintf(out, "Process at %s\n", all[i].Socket)
		}
		if err := run.PrintProcess(out, &all[i], filters); err != nil {
			return err
		}
		if i < len(all)-1 {
			fmt.Fprintln(out)
		}
	}
	return unwell
}

// newShellCmd connects to the debug shell of a process, as cilium-dbg's does.
func newShellCmd() *cobra.Command {
	cmd := shell.ShellCmd("", "waggle> ", func(w io.Writer) {
		fmt.Fprintln(w, "The shell of a Waggle process; 'help' lists its commands, for instance 'db/show endpoints'.")
	})
	cmd.Short = "Connect to the debug shell of a process (db/show endpoints, ipcache/list, …)"
	cmd.GroupID = groupTools
	return cmd
}
