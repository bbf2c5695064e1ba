// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchAllCmd() *cobra.Command {
	common := newBenchFlags()
	common.config.Rounds = 1
	var config bench.SuiteConfig
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Run a short version of every benchmark and write one report",
		Long: `Runs "bench kvstoremesh" with a quarter, a half and all of the clusters, "bench
churn" at each rate, and "bench ingest", which is left out where BPF maps can't be
used. With -o html the report is one file that needs no other.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Suite(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	common.register(flags)
	common.registerPeers(flags)
	flags.StringVar(&config.IngestProgram, "ingest-peer-program", "", "The peer of ingest (upstream-ingest beside this program if empty)")
	flags.Float64SliceVar(&config.Rates, "rates", []float64{5, 500, 5000}, "Events per second over all clusters")
	flags.DurationVar(&config.Duration, "duration", 10*time.Second, "How long to send events at each rate")
	flags.IntVar(&config.Entries, "entries", 100_000, "Number of endpoints of ingest; 0 leaves it out")
	return cmd
}
