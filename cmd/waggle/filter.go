// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cmd/waggle/run"
)

func newFilterCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "filter",
		Short:   "Ask which filters apply to what",
		GroupID: groupTools,
	}
	cmd.AddCommand(newFilterExplainCmd())
	return cmd
}

func newFilterExplainCmd() *cobra.Command {
	dir, sockets, format := run.DefaultDir(), []string(nil), output.Text
	cmd := &cobra.Command{
		Use:   "explain CLUSTER/NAMESPACE/POD",
		Short: "Say why a pod is or isn't synced, and to whom",
		Long: `Asks the exporter of the pod's cluster which rules apply to the pod and what it has
written of it, and the KVStoreMesh of each other cluster whether it is there.

The processes are those of a mesh started with "waggle run", or with
--shell-sock-path those whose shells have these sockets: the exporter of the
cluster, and as many KVStoreMeshes as are of interest.

The exit status is 1 when that can't be told, or not all of it.`,
		Example: `  waggle filter explain amber/shop/cart-0
  waggle filter explain --shell-sock-path=/run/clustermesh.sock,/run/kvstoremesh.sock amber/shop/cart-0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := run.ParsePodName(args[0])
			if err != nil {
				return err
			}
			var answer *run.Explanation
			if len(sockets) > 0 {
				answer, err = run.ExplainProcesses(sockets, name)
			} else {
				layout, layoutErr := run.ReadLayout(dir)
				if layoutErr != nil {
					return layoutErr
				}
				answer, err = run.ExplainRun(layout, name)
			}
			if answer == nil {
				return err
			}
			if format == output.JSON {
				if jsonErr := printJSON(cmd.OutOrStdout(), answer); jsonErr != nil {
					return jsonErr
				}
				return err
			}
			// Of a pod that isn't known, or not yet, the rules would say nothing true.
			if answer.Source.PodKnown && len(answer.Source.Waits) == 0 {
				if printErr := answer.Print(cmd.OutOrStdout()); printErr != nil {
					return printErr
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "run-dir", dir, "Directory of the run")
	cmd.Flags().StringSliceVar(&sockets, "shell-sock-path", nil, "Sockets of the shells of processes to ask instead, separated by commas")
	format.Flag(cmd.Flags())
	return cmd
}

// printJSON prints a value for programs, so that people can read it as well.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
