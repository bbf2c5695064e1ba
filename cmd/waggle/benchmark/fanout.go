// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/bench/follower"
)

func newBenchFanoutCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.FanoutConfig
	)
	cmd := &cobra.Command{
		Use:   "fanout",
		Short: "Measure what it costs an etcd to tell changes to many agents",
		Long: `Replaces pods in one etcd at a steady rate, in commits of one or several, while
many agents watch, each by a connection of its own; and measures what an event
that is delivered to an agent costs the etcd, against the number of events in a
commit. What it is compared with is an etcd that is written one put at a time:
commits of 1.

An event is due at its time, and a commit is written when its last one is: the
latency has both in it, and is also given without. With --proxy all is measured
once more with the agents behind "etcd grpc-proxy", in a process of its own. Its
program is compiled from the same dependency: make bin/etcd.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Fanout(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Agents, "agents", 300, "Number of agents that watch")
	flags.Float64Var(&config.Rate, "rate", 100, "Events per second")
	flags.DurationVar(&config.Duration, "duration", 15*time.Second, "How long to send events")
	flags.DurationVar(&config.Drain, "drain", 30*time.Second, "How long to wait afterwards for what hasn't arrived")
	flags.IntSliceVar(&config.Commits, "commits", []int{1, 5, 20}, "Sizes of commits to measure, in events")
	flags.BoolVar(&config.Proxy, "proxy", false, "Measure the same once more with etcd grpc-proxy between etcd and agents")
	flags.StringVar(&config.ProxyProgram, "proxy-program", "", "Upstream's etcd (the one beside this program if empty)")
	common.registerRounds(flags)
	return cmd
}

// newBenchReadersCmd is the agents that a benchmark starts for itself.
func newBenchReadersCmd() *cobra.Command {
	var config follower.ReadersConfig
	cmd := &cobra.Command{
		Use: "readers", Short: "Be many agents of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			return follower.RunReaders(ctx, log, config)
		},
	}
	config.Register(cmd.Flags())
	return cmd
}
