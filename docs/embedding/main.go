// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Embedding prints the endpoints of a cluster and of those that it is connected with,
// as they come and go. docs/embedding.md is about it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
)

func main() {
	h := hive.New(
		cells.AgentTables,     // this cluster and remote ones → tables
		kubernetes.ClientCell, // the API server, unless manifests are read
		cell.Invoke(follow),   // tables → what you make of them
	)
	cmd := &cobra.Command{Use: "embedding", SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		return h.Run(slog.Default())
	}}
	h.RegisterFlags(cmd.Flags()) // --k8s-manifests, --clustermesh-config and so on
	cmd.AddCommand(h.Command())  // "embedding hive" prints what it is made of
	if err := cmd.Execute(); err != nil {
		os.Exit(1)
	}
}

func follow(jobs job.Group, db *statedb.DB, endpoints statedb.Table[*state.Endpoint]) {
	jobs.Add(job.OneShot("follow", func(ctx context.Context, health cell.Health) error {
		health.OK("Following the endpoints")
		txn := db.WriteTxn(endpoints)
		changes, err := endpoints.Changes(txn)
		txn.Commit()
		for err == nil {
			batch, more := changes.Next(db.ReadTxn())
			for change := range batch {
				fmt.Println(change.Object.Prefix(), change.Object.Pod(), change.Object.Identity(), "gone:", change.Deleted)
			}
			select {
			case <-more:
			case <-ctx.Done():
				return nil
			}
		}
		return err
	}))
}
