// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes && !waggle_no_embedded_etcd

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/testing/scripts"
)

// newScriptCmd runs one script, as `go test ./testing/scripts` runs those of
// testdata/scripts.
func newScriptCmd() *cobra.Command {
	var (
		faults   float64
		timeout  time.Duration
		debug    bool
		commands bool
	)
	cmd := &cobra.Command{
		Use:   "script FILE.txtar",
		Short: "Run a script that starts a mesh, changes it, and checks the outcome",
		Long: `Runs a script: a text file in txtar format whose first part is commands, one a
line, and whose other parts are the files that these use. All parts of all clusters
run in this process, on real embedded etcds; Kubernetes is a fake one, which the
script fills. What happens is printed as it does. The exit code is 1 as soon as a
command goes other than the script says.

A script for two clusters, where a pod of c1 is to be seen in c2:

  # Start c1's exporter, c2's KVStoreMesh and agent, and the two etcds.
  etcd/start c1 c2
  exporter/start c1 --cluster-id=1
  kvstoremesh/start c2 --cluster-id=2
  agent/start c2
  mesh/connect c2 c1

  # Add objects to c1's Kubernetes, each from a file of the archive.
  c1/k8s/add namespace.yaml identity.yaml pod.yaml

  # Wait until the table of c2's agent is like that in a file.
  * c2/agent/db/cmp endpoints expected.table

  -- namespace.yaml --
  …

Lines that begin with "#" divide a script into sections. "! command" must fail;
"* command" is tried again, with all of its section, until it succeeds.

Commands of one etcd, cluster or part bear its name: ETCD/kvstore/list and
ETCD/kvstore/history; CLUSTER/k8s/add; CLUSTER/exporter/…, CLUSTER/kvstoremesh/…
and CLUSTER/agent/… for what the part's own shell has, such as db/show TABLE,
db/cmp TABLE FILE and ipcache/get ADDRESS. --commands prints all others.`,
		Example: `  waggle script testdata/scripts/endpoints.txtar
  waggle script --faults=2 testdata/scripts/ip-reuse.txtar`,
		GroupID: groupTools,
		Args: func(cmd *cobra.Command, args []string) error {
			if commands {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if commands {
				return scripts.ListCommands(cmd.OutOrStdout())
			}
			if faults < 0 || faults > 100 {
				return fmt.Errorf("--faults=%v: must be between 0 and 100", faults)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			log := slog.New(slog.DiscardHandler)
			if debug {
				log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			err := scripts.RunFile(ctx, args[0], cmd.OutOrStdout(), scripts.Options{Log: log, Faults: faults / 100})
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("not done within --timeout=%s: %w", timeout, err)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.Float64Var(&faults, "faults", 0, "Cut connections to etcds at random: with this probability, in percent, for each message")
	flags.DurationVar(&timeout, "timeout", 2*time.Minute, "Time that the script may take")
	flags.BoolVar(&debug, "debug", false, "Print what the parts log, to stderr")
	flags.BoolVar(&commands, "commands", false, "Print the commands that a script can use, and end")
	return cmd
}
