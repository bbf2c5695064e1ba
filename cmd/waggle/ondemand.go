// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

func newOnDemandCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ondemand",
		Short:   "Ask agents what they have resolved on demand",
		GroupID: groupTools,
	}
	cmd.AddCommand(newOnDemandListCmd())
	return cmd
}

func newOnDemandListCmd() *cobra.Command {
	dir, sockets, format := run.DefaultDir(), []string(nil), output.Text
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what was resolved on demand, and what isn't and why",
		Long: `Lists of each agent the addresses that packets missed in the ipcache map and that
were resolved, with the time at which they are looked at again and how long ago a
packet used them; the addresses at which there was nothing; and the identities that
packets carried. Below that it says what isn't resolved: pod CIDRs that two clusters
claim, clusters whose pod CIDRs nobody knows, and clusters that are left alone for a
while since lookups have failed.

The agents are those of a mesh started with "waggle run", or with --shell-sock-path
those whose shells have these sockets.

The exit status is 1 when an agent can't tell, or has the feature off.`,
		Example: `  waggle ondemand list --shell-sock-path=/var/run/waggle/shell.sock
  waggle ondemand list -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(sockets) == 0 {
				layout, err := run.ReadLayout(dir)
				if err != nil {
					return err
				}
				sockets = layout.AgentShells()
			}
			lists, problems := run.OnDemand(sockets)
			out := cmd.OutOrStdout()
			if format == output.JSON {
				return errors.Join(printJSON(out, lists), problems)
			}
			for i, list := range lists {
				if len(lists) > 1 {
					if i > 0 {
						fmt.Fprintln(out)
					}
					fmt.Fprintf(out, "Agent of %s\n", list.Cluster)
				}
				if err := list.Print(out); err != nil {
					return err
				}
			}
			return problems
		},
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "Directory of the run")
	cmd.Flags().StringSliceVar(&sockets, "shell-sock-path", nil, "Sockets of the shells of agents to ask instead, separated by commas")
	format.Flag(cmd.Flags())
	return cmd
}
