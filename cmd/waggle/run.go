// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/hive/shell"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

func newStatusCmd() *cobra.Command {
	dir, sockets, format, filters := run.DefaultDir(), []string(nil), output.Text, false
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
			out := cmd.OutOrStdout()
			if len(sockets) > 0 {
				return printProcesses(out, sockets, format, filters)
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
			if format == output.JSON {
				return errors.Join(printJSON(out, report), report.Unhealthy())
			}
			return errors.Join(report.Print(out, filters), report.Unhealthy())
		},
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "Directory of the run")
	cmd.Flags().StringSliceVar(&sockets, "shell-sock-path", nil, "Sockets of the shells of processes to ask instead")
	cmd.Flags().BoolVar(&filters, "filters", false, "Show what filters leave out even where that is nothing")
	format.Flag(cmd.Flags())
	return cmd
}

func printProcesses(out io.Writer, sockets []string, format output.Format, filters bool) error {
	all, unwell := run.AskProcesses(sockets)
	if format == output.JSON {
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
