// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/waggle-mesh/waggle/bench"
)

func newBenchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Measure Waggle on synthetic meshes",
		GroupID: groupTools,
	}
	cmd.AddCommand(newBenchKVStoreMeshCmd())
	return cmd
}

func newBenchKVStoreMeshCmd() *cobra.Command {
	var (
		config = bench.Config{Mesh: bench.DefaultMesh, Layout: bench.LayoutAuto}
		layout string
		output string
	)
	cmd := &cobra.Command{
		Use:   "kvstoremesh",
		Short: "Measure the replication of many clusters into an empty etcd",
		Long: `Fills the etcds of source clusters with a synthetic mesh, starts "waggle
kvstoremesh" on an empty local etcd, each as a process of its own, and measures
from the start of that process until the local etcd is complete: time, CPU of
each process and peak memory, by the kernel's accounts. Then it checks that what
has arrived is what was sent.

A peer is measured on the same work in the same call, round by round in turns,
and on the same kind of etcd: upstream's KVStoreMesh with the limits of its chart
(upstream-shipped) or without (upstream). Its program is compiled from the same
dependency: make bin/upstream-clustermesh-apiserver.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "json" && output != "text" {
				return fmt.Errorf("--output=%s: must be json or text", output)
			}
			switch config.Layout = bench.Layout(layout); config.Layout {
			case bench.LayoutAuto, bench.LayoutState, bench.LayoutCache:
			default:
				return fmt.Errorf("--layout=%s: must be %s, %s or %s", layout, bench.LayoutAuto, bench.LayoutState, bench.LayoutCache)
			}
			if config.Rounds < 1 || config.CacheEtcds < 1 {
				return fmt.Errorf("--rounds and --cache-etcds must be positive")
			}
			var err error
			if config.Program, err = os.Executable(); err != nil {
				return fmt.Errorf("looking for our own program file: %w", err)
			}
			config.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			var done func()
			config.Progress, done = progressOn(os.Stderr)
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			report, err := bench.KVStoreMesh(ctx, config)
			done()
			if err != nil {
				return err
			}
			return writeReport(cmd.OutOrStdout(), report, output)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Mesh.Clusters, "clusters", config.Mesh.Clusters, "Number of source clusters")
	flags.IntVar(&config.Mesh.Endpoints, "endpoints", config.Mesh.Endpoints, "Endpoints of each source cluster")
	flags.IntVar(&config.Mesh.Nodes, "nodes", config.Mesh.Nodes, "Nodes of each source cluster")
	flags.IntVar(&config.Mesh.Identities, "identities", config.Mesh.Identities, "Identities of each source cluster")
	flags.IntVar(&config.Mesh.Services, "services", config.Mesh.Services, "Global services of each source cluster")
	flags.Uint64Var(&config.Mesh.Seed, "seed", config.Mesh.Seed, "Seed of the mesh's content")
	flags.IntVar(&config.Rounds, "rounds", 3, "How often to measure; the round of median time is reported, and all of them")
	flags.StringSliceVar(&config.Peers, "peer", nil, "What to measure as well, in turns: "+strings.Join(bench.KVStoreMeshPeers, ", "))
	flags.StringVar(&config.PeerProgram, "peer-program", "", "Upstream's clustermesh-apiserver (the one beside this program if empty)")
	flags.StringVar(&layout, "layout", string(bench.LayoutAuto),
		"How sources keep their keys: state, an etcd for each cluster; cache, several clusters in each of a few etcds; "+
			"auto, state for up to 20 clusters")
	flags.IntVar(&config.CacheEtcds, "cache-etcds", 4, "Number of source etcds in the layout cache")
	flags.DurationVar(&config.Timeout, "timeout", 10*time.Minute, "How long a round may take")
	flags.StringVar(&config.Dir, "dir", "", "Existing directory for data and logs of the processes, which stay there (a temporary one, removed at the end, if empty)")
	flags.StringVarP(&output, "output", "o", "text", "Format of the report: text or json")
	return cmd
}

func writeReport(w io.Writer, report *bench.Report, format string) error {
	if format == "text" {
		return report.WriteText(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

// progressOn shows what is being done in one line of a terminal, and nothing
// where there is none. done clears the line.
func progressOn(f *os.File) (progress func(string), done func()) {
	if !term.IsTerminal(int(f.Fd())) {
		return func(string) {}, func() {}
	}
	const clearLine = "\r\x1b[K"
	return func(doing string) { fmt.Fprint(f, clearLine, doing, " …") },
		func() { fmt.Fprint(f, clearLine) }
}
