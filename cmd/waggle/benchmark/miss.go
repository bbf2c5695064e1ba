// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package benchmark

import (
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/testing/netns"
)

func newBenchMissCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.MissConfig
	)
	common.config.Rounds = 1
	cmd := &cobra.Command{
		Use:   "miss",
		Short: "Measure how long an address takes that the ipcache map doesn't know",
		Long: `Sends packets from a pod's network namespace to addresses of another cluster that
aren't pushed, and measures from right before a packet is sent, some 10 µs before
the kernel's signal, until the agent's map has its destination. On the way are the
BPF program on the pod's interface, the agent, a KVStoreMesh with its read-through,
and the etcd of the other cluster, each a process of its own. The map is looked at
from outside, every 0.2 ms, for what is waited for alone; a latency
may be too long by the time between two looks, which is reported.

For that the limits of rates are lifted. Then an agent as shipped is measured while
another pod sends to absent addresses as fast as it can: how long single misses
take meanwhile, and what the scan costs the agent. Last is the time that the
program takes for a packet, by BPF_PROG_TEST_RUN, with a map of the largest size.

All of it runs in network and mount namespaces of its own. It needs root.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) {
				config.Config = common.config
				return bench.Miss(cmd.Context(), config)
			})
		},
	}
	config.Register(cmd.Flags())
	common.registerRounds(cmd.Flags())
	return cmd
}

// newBenchMissesCmd is the node on which a round of misses is measured.
func newBenchMissesCmd() *cobra.Command {
	var (
		common = newBenchFlags()
		config bench.MissConfig
	)
	cmd := &cobra.Command{
		Use: "misses", Short: "Be the node of a benchmark", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if err := common.complete(cmd.ErrOrStderr()); err != nil {
				return err
			}
			config.Config = common.config
			config.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			var failure error
			code, err := netns.Isolate(func() int {
				failure = bench.RunMissNode(ctx, config)
				return 0
			})
			if err == nil && code != 0 {
				err = fmt.Errorf("exit status %d", code)
			}
			if failure != nil {
				err = failure
			}
			return err
		},
	}
	config.Register(cmd.Flags())
	common.registerRun(cmd.Flags())
	return cmd
}
