// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchFiltersCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config = bench.FiltersConfig{Filters: bench.Filters{OptIn: 0.05, Regional: 0.8, Regions: 5}}
	)
	common.config.Rounds = 1
	mesh := &common.config.Mesh
	*mesh = bench.DefaultFiltersMesh
	cmd := &cobra.Command{
		Use:   "filters",
		Short: "Measure what sync filters spare exporters, KVStoreMesh, etcds and agents",
		Long: `Measures a mesh twice in one call, in turns: as everything is synced, and with
sync filters. Then exporters have --clustermesh-sync-mode=opt-in and a region, the
share --opt-in of all workloads has the annotation clustermesh.cilium.io/sync=true,
the share --regional of these clustermesh.cilium.io/sync-scope=regional as well, and
KVStoreMesh is in the first of the regions.

The first cluster is in a real kube-apiserver, with its pods, and "waggle
clustermesh" exports it. What the exporters of all others would have written, by
the same rules, is in a few etcds. "waggle kvstoremesh", its etcd and "waggle agent"
with a BPF map take that in, each from empty; then nothing changes for a while, and
then pods are replaced. At the end everything that the rules say must be there, and
nothing else. The report has the keys of each etcd by resource, its watch events,
and CPU and memory of each program.

It needs the right to use BPF, and the program built by: make bin/kube-apiserver.`,
		Example: `  waggle bench filters --clusters 100 --endpoints 2000 --opt-in 5% --regional 80% --regions 5 -o html > filters.html`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed
			for flag, n := range map[string]struct {
				of    *int
				share int
			}{"nodes": {&mesh.Nodes, 10}, "identities": {&mesh.Identities, 10}, "services": {&mesh.Services, 20}} {
				if !given(flag) {
					*n.of = max(1, mesh.Endpoints/n.share)
				}
			}
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.SyncFilters(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&mesh.Clusters, "clusters", mesh.Clusters, "Number of source clusters")
	flags.IntVar(&mesh.Endpoints, "endpoints", mesh.Endpoints, "Endpoints of each source cluster")
	flags.IntVar(&mesh.Nodes, "nodes", 0, "Nodes of each source cluster (one for 10 endpoints if not given)")
	flags.IntVar(&mesh.Identities, "identities", 0, "Identities of each source cluster, each of one workload (one for 10 endpoints if not given)")
	flags.IntVar(&mesh.Services, "services", 0, "Global services of each source cluster (one for 20 endpoints if not given)")
	flags.Var((*share)(&config.Filters.OptIn), "opt-in", "Share of workloads whose pods opt in to be synced")
	flags.Var((*share)(&config.Filters.Regional), "regional", "Share of these that are synced within their region only")
	flags.IntVar(&config.Filters.Regions, "regions", config.Filters.Regions, "Number of regions, over which clusters are dealt out")
	flags.Float64Var(&config.Rate, "rate", 500, "Pods to replace per second, over all clusters")
	flags.DurationVar(&config.Duration, "duration", 20*time.Second, "How long to replace pods")
	flags.DurationVar(&config.Idle, "idle", 10*time.Second, "How long to measure without any change")
	flags.DurationVar(&config.Drain, "drain", time.Minute, "How long to wait afterwards for what hasn't arrived")
	flags.IntVar(&common.config.CacheEtcds, "cache-etcds", common.config.CacheEtcds, "Number of etcds that all source clusters but the first share")
	flags.StringVar(&config.KubernetesProgram, "kubernetes-program", "", "The real kube-apiserver (the one beside this program if empty)")
	common.registerRounds(flags)
	return cmd
}

// share is a flag of a part of something: "5%", or "0.05".
type share float64

// String implements pflag.Value.
func (s *share) String() string { return fmt.Sprintf("%g%%", 100*float64(*s)) }

// Type implements pflag.Value.
func (s *share) Type() string { return "share" }

// Set implements pflag.Value.
func (s *share) Set(text string) error {
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return fmt.Errorf("%q is no share: write 5%% or 0.05", text)
	}
	if percent {
		v /= 100
	}
	if !(v >= 0 && v <= 1) { // NaN as well
		return fmt.Errorf("%q is no share: must be between 0 %% and 100 %%", text)
	}
	*s = share(v)
	return nil
}
