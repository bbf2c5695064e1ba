// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"context"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/bench/follower"
)

func newBenchRolloutCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.RolloutConfig
	)
	mesh := &common.config.Mesh
	cmd := &cobra.Command{
		Use:   "rollout",
		Short: "Measure what a source goes through when its API server is replaced",
		Long: `Connects many KVStoreMeshes to the etcd of one source, and then has its address
lead to another etcd, of other revisions, in which one key in a hundred was
deleted, added or changed; the old one stops answering. Measures until each
KVStoreMesh has listed it and has these differences: time, CPU of the etcd and its peak memory, what
it has sent, and how many lists were under way there at once. Lists are counted at
the etcd, from the request for the first page until the last one is made.

The KVStoreMeshes are the side that reads, with all that connects and reconnects,
many of them in one process; behind them there is nothing. The peer is the same
side of upstream's KVStoreMesh, its common.ClusterMesh and WatchStores, with the
limits of its chart (upstream-shipped) or without (upstream). Its program is
compiled from the same dependency: make bin/upstream-rollout.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Rollout(cmd.Context(), config)
			})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.KVStoreMeshes, "kvstoremeshes", 100, "Number of KVStoreMeshes that are connected")
	flags.IntVar(&mesh.Endpoints, "endpoints", mesh.Endpoints, "Endpoints of the source")
	flags.IntVar(&mesh.Nodes, "nodes", mesh.Nodes, "Nodes of the source")
	flags.IntVar(&mesh.Identities, "identities", mesh.Identities, "Identities of the source")
	flags.IntVar(&mesh.Services, "services", mesh.Services, "Global services of the source")
	common.registerRounds(flags)
	flags.StringSliceVar(&common.config.Peers, "peer", nil, "What to measure as well, in turns: "+strings.Join(bench.RolloutPeers, ", "))
	flags.StringVar(&common.config.PeerProgram, "peer-program", "", "The peer (upstream-rollout beside this program if empty)")
	return cmd
}

// newBenchMeshesCmd is the KVStoreMeshes that a benchmark starts for itself.
func newBenchMeshesCmd() *cobra.Command {
	var config follower.MeshesConfig
	cmd := &cobra.Command{
		Use: "meshes", Short: "Be many KVStoreMeshes of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return untilStopped(cmd, func(ctx context.Context, log *slog.Logger) error {
				return follower.RunMeshes(ctx, log, config, cmd.OutOrStdout())
			})
		},
	}
	config.Register(cmd.Flags())
	return cmd
}

// newBenchEtcdCmd is the etcd that a benchmark starts to count what is listed.
func newBenchEtcdCmd() *cobra.Command {
	var config follower.CountedConfig
	cmd := &cobra.Command{
		Use: "etcd", Short: "Be an etcd of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return untilStopped(cmd, func(ctx context.Context, _ *slog.Logger) error { return follower.RunCounted(ctx, config) })
		},
	}
	config.Register(cmd.Flags())
	return cmd
}

// untilStopped runs a part of a benchmark until the process is told to stop.
func untilStopped(cmd *cobra.Command, run func(context.Context, *slog.Logger) error) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelError})))
}
