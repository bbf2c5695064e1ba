// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/logging"
	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/bench/follower"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

func newBenchInClusterCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.InClusterConfig
	)
	common.config.Rounds = 1
	cmd := &cobra.Command{
		Use:   "incluster",
		Short: "Measure what it costs to tell a cluster's state to its own agents",
		Long: `Fills a real kube-apiserver with the nodes, identities, endpoints and services of
a cluster, changes them at a steady rate, and measures what that costs the API
server and its etcd, and how long each change takes until it is in the table of
every agent:

  idle   without any agent: what the writes cost by themselves
  crd    each agent watches all kinds of objects at the API server
  cache  a "waggle incluster-cache" watches them, and each agent its etcd, which is
         a process of its own here

Each is measured on an API server of its own that was started for it, with the
same changes in the same order. The agents have the cells of a real one that fill
its tables, each with tables and connections of its own, many in a process; what
they cost is reported apart, and so are the processors' load and the watches that
the API server ended since their readers were too slow: a machine that has no
processors for so many agents has agents list again, which adds to what crd costs.
With --bare most of the agents only open their watches; latencies are then those of
the others. Afterwards each agent's tables are compared with what
was written.

Of 20 changes of pods 9 are new ones, 9 remove the oldest, and 2 give a pod another
identity; one new pod in 50 brings an identity, which goes with it. Of 10 changes of
services 8 replace a backend, one is a new service, and one removes the oldest. The
kube-apiserver is built by: make bin/kube-apiserver.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.InCluster(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Agents, "agents", 300, "Number of agents, and of nodes")
	flags.IntVar(&config.Bare, "bare", 0,
		"How many of the agents only open the watches that an agent has, on a connection each, and do nothing with what they are sent")
	flags.IntVar(&config.Pods, "pods", 5000, "Number of pods at the start")
	flags.Float64Var(&config.Rate, "rate", 100, "Changes of pods per second")
	flags.Float64Var(&config.ServicesRate, "services-rate", 5, "Changes of services per second")
	flags.DurationVar(&config.Duration, "duration", 30*time.Second, "How long to make changes")
	flags.DurationVar(&config.Drain, "drain", 2*time.Minute, "How long to wait afterwards until all agents have all")
	flags.DurationVar(&config.Wait, "wait", inclustercache.DefaultConfig.CommitDelay,
		"The cache's --incluster-cache-commit-delay: the longest wait between two commits")
	flags.DurationSliceVar(&config.Waits, "waits", nil, "Further waits to measure the cache with")
	flags.BoolVar(&config.EndpointSlices, "enable-cilium-endpoint-slice", false, "Have CiliumEndpointSlices instead of CiliumEndpoints")
	flags.StringVar(&config.KubernetesProgram, "kubernetes-program", "", "The real kube-apiserver (the one beside this program if empty)")
	common.registerRounds(flags)
	return cmd
}

// newBenchAgentsCmd is the agents that a benchmark starts for itself.
func newBenchAgentsCmd() *cobra.Command {
	var config follower.AgentsConfig
	cmd := &cobra.Command{
		Use: "agents", Short: "Be many agents of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := logging.SetupLogging(nil, logging.LogOptions{"level": "warn"}, "waggle-agents", false); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			return follower.RunAgents(ctx, log, config)
		},
	}
	config.Register(cmd.Flags())
	return cmd
}
