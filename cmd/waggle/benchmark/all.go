// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

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
churn" at each rate, and each of the others once. What this machine can't do is
left out: "bench ingest", "bench scale", "bench filters" and "bench miss" where BPF
maps can't be used, and "bench export", "bench incluster" and "bench filters" without
bin/kube-apiserver beside this program. With -o html the report is one file that
needs no other.`,
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
	flags.StringSliceVar(&common.config.Peers, "peer", nil,
		"What to measure as well, in turns, where there is such a peer: "+bench.Upstream+", "+bench.UpstreamShipped)
	flags.Float64SliceVar(&config.Rates, "rates", []float64{500, 5000}, "Events per second over all clusters")
	flags.DurationVar(&config.Duration, "duration", 5*time.Second, "How long to send events at each rate")
	flags.IntVar(&config.Entries, "entries", 100_000, "Number of endpoints of ingest; 0 leaves it out")
	flags.IntVar(&config.KVStoreMeshes, "kvstoremeshes", 20, "Number of KVStoreMeshes of rollout; 0 leaves it out")
	flags.IntVar(&config.Agents, "agents", 100, "Number of agents of fanout; 0 leaves it out")
	flags.IntVar(&config.Exported, "exported", 500, "Number of endpoints of export; 0 leaves it out")
	flags.IntVar(&config.InClusterAgents, "incluster-agents", 30, "Number of agents of incluster; 0 leaves it out")
	flags.IntVar(&config.ScaleClusters, "scale-clusters", 16, "Number of clusters of scale; 0 leaves it out")
	flags.IntVar(&config.Misses, "misses", 2000, "Number of misses of miss; 0 leaves it out")
	flags.IntVar(&config.FilterClusters, "filter-clusters", 20, "Number of source clusters of filters; 0 leaves it out")
	return cmd
}
