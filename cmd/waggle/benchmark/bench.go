// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package benchmark has the commands of "waggle bench", and bench what they measure.
package benchmark

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/bench"
	"github.com/waggle-mesh/waggle/bench/page"
)

// NewCmd is "waggle bench".
func NewCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Waggle on synthetic meshes",
	}
	cmd.AddCommand(newBenchKVStoreMeshCmd(), newBenchChurnCmd(), newBenchIngestCmd(), newBenchAllCmd(), newBenchFollowCmd())
	cmd.AddCommand(newBenchFanoutCmd(), newBenchReadersCmd(), newBenchExportCmd())
	cmd.AddCommand(newBenchScaleCmd(), newBenchInClusterCmd(), newBenchAgentsCmd())
	cmd.AddCommand(newBenchRolloutCmd(), newBenchMeshesCmd(), newBenchEtcdCmd(), newBenchFiltersCmd())
	cmd.AddCommand(newBenchMissCmd(), newBenchMissesCmd())
	return cmd
}

func newBenchKVStoreMeshCmd() *cobra.Command {
	common := newBenchFlags()
	cmd := &cobra.Command{
		Use:   "kvstoremesh",
		Short: "Measure the replication of many clusters into an empty etcd",
		Long: `Fills the etcds of source clusters with a synthetic mesh, starts "waggle
kvstoremesh" on an empty local etcd, each as a process of its own, and measures
from the start of that process until the local etcd is complete: time, CPU of
each process and peak memory, by the kernel's accounts. Then it checks that what
has arrived is what was sent. What each round goes through is chosen by
--scenarios:

  start    as above, with the time split by phase: when all clusters were
           connected to, when 99 % of the bytes from the sources had been received
           (list), when 99 % of those to the local etcd had been acknowledged
           (write), and when it had the last canary. All count from the start of
           the process, since the phases of the clusters overlap; they are taken
           from the kernel's accounts of the sockets, and the local etcd
  restart  the process is stopped and started again with nothing changed: time
           until it says at /readyz that it is ready, CPU, and what it has written
           to the local etcd until that was calm for a second
  switch   then all source etcds are replaced behind their addresses by others, in
           which one key in a hundred was deleted, added or changed: time until the
           local etcd has the last difference, CPU, and writes

A peer is measured on the same work in the same call, round by round in turns,
and on the same kind of etcd: upstream's KVStoreMesh with the limits of its chart
(upstream-shipped) or without (upstream). Its program is compiled from the same
dependency: make bin/upstream-clustermesh-apiserver. With up to 20 clusters there
is etcd's own mirror maker as well (mirror: make bin/upstream-mirror), which
copies keys and nothing else.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return common.run(cmd, func() (benchReport, error) { return bench.KVStoreMesh(cmd.Context(), common.config) })
		},
	}
	common.register(cmd.Flags())
	common.registerPeers(cmd.Flags())
	cmd.Flags().Lookup("peer").Usage += ", " + bench.Mirror
	cmd.Flags().StringVar(&common.config.MirrorProgram, "mirror-program", "", "Etcd's mirror maker (upstream-mirror beside this program if empty)")
	cmd.Flags().StringSliceVar(&common.config.Scenarios, "scenarios", bench.Scenarios,
		"What each round goes through; the start is part of each")
	return cmd
}

// benchFlags are the flags that benchmarks share.
type benchFlags struct {
	config bench.Config
	layout string
	output string
}

func newBenchFlags() *benchFlags {
	return &benchFlags{config: bench.Config{Mesh: bench.DefaultMesh, CacheEtcds: 4, Rounds: 3}, layout: string(bench.LayoutAuto)}
}

func (b *benchFlags) register(flags *pflag.FlagSet) {
	c := &b.config
	flags.IntVar(&c.Mesh.Clusters, "clusters", c.Mesh.Clusters, "Number of source clusters")
	flags.IntVar(&c.Mesh.Endpoints, "endpoints", c.Mesh.Endpoints, "Endpoints of each source cluster")
	flags.IntVar(&c.Mesh.Nodes, "nodes", c.Mesh.Nodes, "Nodes of each source cluster")
	flags.IntVar(&c.Mesh.Identities, "identities", c.Mesh.Identities, "Identities of each source cluster")
	flags.IntVar(&c.Mesh.Services, "services", c.Mesh.Services, "Global services of each source cluster")
	flags.StringVar(&b.layout, "layout", b.layout,
		"How sources keep their keys: state, an etcd for each cluster; cache, several clusters in each of a few etcds; "+
			"auto, state for up to 20 clusters")
	flags.IntVar(&c.CacheEtcds, "cache-etcds", c.CacheEtcds, "Number of source etcds in the layout cache")
	b.registerRounds(flags)
}

// registerRounds adds the flags of benchmarks that measure several times.
func (b *benchFlags) registerRounds(flags *pflag.FlagSet) {
	flags.IntVar(&b.config.Rounds, "rounds", b.config.Rounds, "How often to measure; the round of median outcome is reported, and all of them")
	b.registerRun(flags)
}

// registerRun adds the flags that every benchmark has.
func (b *benchFlags) registerRun(flags *pflag.FlagSet) {
	c := &b.config
	flags.Uint64Var(&c.Mesh.Seed, "seed", c.Mesh.Seed, "Seed of the mesh's content")
	flags.DurationVar(&c.Timeout, "timeout", 10*time.Minute, "How long a round may take")
	flags.StringVar(&c.Dir, "dir", "", "Existing directory for data and logs of the processes, which stay there (a temporary one, removed at the end, if empty)")
	flags.StringVarP(&b.output, "output", "o", "text", "Format of the report: text, json or html")
}

// registerPeers adds the flags of benchmarks whose peer is upstream's KVStoreMesh.
func (b *benchFlags) registerPeers(flags *pflag.FlagSet) {
	flags.StringSliceVar(&b.config.Peers, "peer", nil, "What to measure as well, in turns: "+strings.Join(bench.KVStoreMeshPeers, ", "))
	flags.StringVar(&b.config.PeerProgram, "peer-program", "", "Upstream's clustermesh-apiserver (the one beside this program if empty)")
}

// complete checks the flags and fills in what isn't one.
func (b *benchFlags) complete(log io.Writer) (err error) {
	switch b.output {
	case "json", "text", "html":
	default:
		return fmt.Errorf("--output=%s: must be json, text or html", b.output)
	}
	switch b.config.Layout = bench.Layout(b.layout); b.config.Layout {
	case bench.LayoutAuto, bench.LayoutState, bench.LayoutCache:
	default:
		return fmt.Errorf("--layout=%s: must be %s, %s or %s", b.layout, bench.LayoutAuto, bench.LayoutState, bench.LayoutCache)
	}
	if b.config.Rounds < 1 || b.config.CacheEtcds < 1 {
		return errors.New("--rounds and --cache-etcds must be positive")
	}
	if b.config.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("looking for our own program file: %w", err)
	}
	b.config.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return nil
}

// benchReport is the outcome of any benchmark.
type benchReport interface {
	json.Marshaler
	WriteText(io.Writer) error
}

// run makes a benchmark, which is to end when the command's context does, and
// writes its report.
func (b *benchFlags) run(cmd *cobra.Command, measure func() (benchReport, error)) error {
	if err := b.complete(cmd.ErrOrStderr()); err != nil {
		return err
	}
	bar := newBar(os.Stderr)
	b.config.Progress, b.config.Steps = bar.doing, bar.steps
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cmd.SetContext(ctx)
	report, err := measure()
	bar.clear()
	if err != nil {
		return err
	}
	return b.write(cmd.OutOrStdout(), report)
}

func (b *benchFlags) write(w io.Writer, report benchReport) error {
	switch b.output {
	case "text":
		return report.WriteText(w)
	case "html":
		sections, err := sectionsOf(report)
		if err != nil {
			return err
		}
		return page.Write(w, "Waggle, measured", sections)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

// sectionsOf are the parts of a page: one for one benchmark.
func sectionsOf(report benchReport) ([]page.Section, error) {
	switch report := report.(type) {
	case interface {
		Sections() ([]page.Section, error)
	}:
		return report.Sections()
	case interface{ Section() (page.Section, error) }:
		section, err := report.Section()
		return []page.Section{section}, err
	}
	return nil, fmt.Errorf("%T has no page", report)
}
