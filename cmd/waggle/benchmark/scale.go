// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchScaleCmd() *cobra.Command {
	var (
		common                                 = newBenchFlags()
		config                                 bench.ScaleConfig
		clusters, nodes, endpoints, identities int
	)
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Measure the largest mesh, from its bootstrap to steady change",
		Long: `Fills a few etcds with the state of all remote clusters of a mesh, and runs one
cluster's part of it: "waggle kvstoremesh", its etcd, and "waggle agent" with a
BPF map that holds everything, each as a process of its own. Measures how long
KVStoreMesh and then the agent take, what each process uses meanwhile, while
nothing changes, and while nodes and endpoints do; and how long each change takes
until it is in the map. At the end it checks that nothing was lost.

Before that it measures the bootstrap with fewer of the clusters, to say how cost
grows with the number of keys. It needs the right to use BPF.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mesh, err := bench.ScaleMesh(clusters, nodes, endpoints, identities, common.config.Mesh.Seed)
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("growth") {
				config.Growth = slices.DeleteFunc(config.Growth, func(size int) bool { return size > clusters })
			}
			common.config.Mesh = mesh
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Scale(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&clusters, "clusters", 511, "Number of clusters, with the consumer's own")
	flags.IntVar(&nodes, "nodes", 50_000, "Number of nodes over all remote clusters")
	flags.IntVar(&endpoints, "endpoints", 500_000, "Number of endpoints over all remote clusters")
	flags.IntVar(&identities, "identities", 100, "Identities of each remote cluster")
	flags.IntVar(&common.config.CacheEtcds, "cache-etcds", common.config.CacheEtcds, "Number of source etcds")
	flags.IntSliceVar(&config.Growth, "growth", []int{32, 64, 128, 255, 511},
		"Numbers of clusters at which to measure the bootstrap as well, each with its share of nodes and endpoints")
	flags.Float64Var(&config.NodeRate, "node-rate", 50, "Changes of nodes per second, over all clusters")
	flags.Float64SliceVar(&config.EndpointRates, "endpoint-rates", []float64{100, 500},
		"Changes of endpoints per second, over all clusters; one rate after the other, each together with those of nodes")
	flags.DurationVar(&config.Duration, "duration", time.Minute, "How long to keep up each rate")
	flags.DurationVar(&config.Idle, "idle", 30*time.Second, "How long to measure without any change")
	flags.DurationVar(&config.Drain, "drain", 30*time.Second, "How long to wait for what hasn't arrived when a rate is done")
	common.registerRun(flags)
	return cmd
}
