// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/logging"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/cells"
)

func newBenchChurnCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.ChurnConfig

		saturate bool
	)
	cmd := &cobra.Command{
		Use:   "churn",
		Short: "Measure how long changes take to reach an agent under steady load",
		Long: `Replaces pods in all source clusters at a steady rate, and measures how long
each change takes through "waggle kvstoremesh" and the local etcd until it is in
the table of an agent; how many are on their way; what it costs each process; and
into how many commits they were put. At 1 to 5 events per second it measures the
latency of a quiet mesh.

A change is due at its time whatever became of those before it, and its latency
counts from then. Peers are those of "bench kvstoremesh".

With --saturate it looks for the rate at which the queue begins to grow: it
doubles the rate, from --rate on, until that isn't sustained, and then halves the
interval.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				if saturate {
					return bench.Saturation(cmd.Context(), config)
				}
				return bench.Churn(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	common.register(flags)
	common.registerPeers(flags)
	flags.Float64Var(&config.Rate, "rate", 500, "Events per second over all clusters")
	flags.DurationVar(&config.Duration, "duration", 20*time.Second, "How long to send events")
	flags.DurationVar(&config.Drain, "drain", 10*time.Second, "How long to wait afterwards for what hasn't arrived")
	flags.BoolVar(&saturate, "saturate", false, "Look for the rate at which it no longer keeps up, from --rate on")
	return cmd
}

// newBenchFollowCmd is the agent that a benchmark starts for itself.
func newBenchFollowCmd() *cobra.Command {
	h := hive.New(cells.Agent, follower.Cell)
	cmd := &cobra.Command{
		Use: "follow", Short: "Be the agent of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if err := logging.SetupLogging(nil, logging.LogOptions{"level": "warn"}, "waggle-follower", false); err != nil {
				return err
			}
			return h.Run(logging.DefaultSlogLogger) // set up above
		},
	}
	h.RegisterFlags(cmd.Flags())
	return cmd
}
