// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"slices"

	"github.com/cilium/cilium/clustermesh-apiserver/health"
	"github.com/cilium/cilium/clustermesh-apiserver/metrics"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/logging"
	hostmetrics "github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/pprof"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/shell"
	"github.com/cilium/statedb"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells"
	wagglemetrics "github.com/waggle-mesh/waggle/cells/metrics"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// program is one hive as a command.
type program struct {
	name, short, long string
	cells             cell.Cell
	// ready gives /readyz; the hive decides what that means.
	ready cell.Cell
	// namespace begins the names of upstream's metrics; empty is upstream's default.
	namespace string
	// gcPercent is Go's GOGC for this program; 0 is Go's default. gcIdle are bytes of heap
	// by which it counts as larger than it is, see idleHeap.
	gcPercent, gcIdle int
}

// programs are all that this build has, in the order in which they are listed.
var programs = slices.Concat(exporters, []program{kvstoreMesh, agent}, caches, etcds)

// kvstoreMesh needs etcds only.
var kvstoreMesh = program{
	name: "kvstoremesh", short: "Replicate remote clusters' etcds into the local one",
	long: `Follows the etcd of each remote cluster that --clustermesh-config has a file for,
and writes what it holds below cilium/cache/ of the local etcd, so that the local
agents read only that one.`,
	cells:     cell.Group(cells.KVStoreMesh, wagglemetrics.KVStoreMesh),
	namespace: hostmetrics.CiliumKVStoreMeshNamespace,
	// Of what it reads it keeps next to nothing, so that most of its heap is
	// garbage: less of that costs little. 50 is 7 % less memory for 13 % more
	// CPU, 100 the other way round (docs/performance.md).
	gcPercent: 75,
	// As for an agent: what it looks up for others is garbage, and where few clusters are
	// copied one collection would follow another. This is up to 48 MiB more.
	gcIdle: 64 << 20,
	ready:  readiness(func(r *kvstoremesh.Readiness) func() bool { return isClosed(r.Ready()) }),
}

// agent has Kubernetes as well, where the build has it.
var agent = program{
	name: "agent", short: "Write the endpoints of the cluster and the mesh to the BPF ipcache map",
	long: ownCluster + `

Reads the remote clusters that --clustermesh-config has a file for, usually all
from the local etcd that "waggle kvstoremesh" fills, and keeps a BPF map with the
layout of Cilium's ipcache up to date. Within cilium-agent the same cells feed
Cilium's own ipcache instead.`,
	cells: cell.Group(cells.Agent, wagglemetrics.Agent),
	// What a list brings in is mostly kept, so that a smaller share of garbage
	// costs little more work: of 500,000 endpoints a twelfth of the processor
	// time for 50 MiB (see waggle bench ingest).
	gcPercent: 50,
	// With few endpoints, a heap of some 6 MiB would be collected all the time while
	// misses are resolved, for a quarter of the processor time, and those that fall into
	// a collection take twice as long. This is up to 32 MiB more, and nothing where there
	// are many.
	gcIdle: 64 << 20,
	ready: readiness(func(db *statedb.DB, endpoints statedb.Table[*state.Endpoint]) func() bool {
		return func() bool { done, _ := endpoints.Initialized(db.ReadTxn()); return done }
	}),
}

// infrastructure is what every program has beside its cells.
func infrastructure() cell.Cell {
	return cell.Module(
		"infrastructure",
		"Metrics and profiles and health and the debug shell",

		metrics.Cell,          // --prometheus-serve-addr
		wagglemetrics.KVStore, // upstream's, for those that feed them
		pprof.Cell(pprof.Config{PprofAddress: "localhost", PprofPort: 6060}), // --pprof
		health.HealthAPIServerCell, // --health-port
		shell.ServerCell(""),       // --shell-sock-path
	)
}

// logConfig are upstream's flags for logs.
type logConfig struct {
	Debug  bool              `mapstructure:"debug"`
	LogOpt map[string]string `mapstructure:"log-opt"`
}

// Flags registers the flags.
func (def logConfig) Flags(flags *pflag.FlagSet) {
	flags.Bool("debug", def.Debug, "Enable debugging mode")
	flags.StringToString("log-opt", def.LogOpt, "Log driver options, for instance level=warn or format=json")
}

// hive is the program, with more cells in tests. Metrics come first: upstream's are
// replaced when they start.
func (p program) hive(more ...cell.Cell) *hive.Hive {
	return hive.New(append([]cell.Cell{cell.Config(logConfig{}), infrastructure(), p.cells, p.ready}, more...)...)
}

func newProgramCmd(p program) *cobra.Command {
	h := p.hive()
	cmd := &cobra.Command{
		Use: p.name, Short: p.short, Long: p.long, GroupID: groupParts, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.namespace != "" {
				hostmetrics.Namespace = p.namespace
			}
			debug, _ := cmd.Flags().GetBool("debug")
			opts, _ := cmd.Flags().GetStringToString("log-opt")
			if err := logging.SetupLogging(nil, logging.LogOptions(opts), "waggle-"+p.name, debug); err != nil {
				return err
			}
			log := logging.DefaultSlogLogger // set up above
			if err := spareMemory(p.gcPercent); err != nil {
				log.Debug("Memory could not be spared", "error", err)
			}
			if p.gcIdle > 0 {
				idleHeap(p.gcIdle, liveHeap)
				collectInQuiet()
			}
			return h.Run(log)
		},
	}
	h.RegisterFlags(cmd.Flags())
	cmd.AddCommand(h.Command())
	return cmd
}

// readiness provides /readyz from a function of the hive's objects, which gives
// the function to ask.
func readiness(ctor any) cell.Cell {
	return cell.Group(
		cell.ProvidePrivate(ctor),
		cell.Provide(func(ready func() bool) []health.EndpointFunc { return readyEndpoint(ready) }),
	)
}

func readyEndpoint(ready func() bool) []health.EndpointFunc {
	return []health.EndpointFunc{{Path: "/readyz", HandlerFunc: func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "NotReady", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("Ready")) // whoever asked has gone
	}}}
}

func isClosed(ch <-chan struct{}) func() bool {
	return func() bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
}
