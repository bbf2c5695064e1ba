// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strings"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell writes the tables of endpoints and nodes into the map that
// --ipcache-backend names.
//
// It provides *Datapath, for lookups; it needs the tables of endpoints and nodes and
// wire.ClusterInfo.
var Cell = newCell("Endpoints and nodes to the BPF ipcache map", openByFlag)

// InMemoryCell is Cell for a build without BPF: whatever the flags say, the map
// is in memory.
var InMemoryCell = newCell("Endpoints and nodes to a map in memory", openInMemory)

// NewCell is Cell with another way to open the map.
func NewCell(open Opener) cell.Cell {
	return newCell("Endpoints and nodes to a map of this hive", open)
}

func newCell(description string, open Opener) cell.Cell {
	return cell.Module(
		"ipcache",
		description,

		cell.Config(DefaultConfig),
		cell.Provide(newDatapath(open)),

		// It works whether anybody asks for it or not.
		cell.Provide(register),
		cell.Invoke(func(*reconciler) {}),

		cell.Provide(scriptCommands),
	)
}

const (
	flagBackend  = "ipcache-backend"
	flagMapMax   = "bpf-ipcache-map-max"
	flagUnderlay = "underlay-protocol"
	flagRoot     = "bpf-root"
	flagMapDir   = "bpf-map-dir"
	flagIPv4     = "enable-ipv4"
	flagIPv6     = "enable-ipv6"
)

// Config are the flags of the ipcache.
type Config struct {
	// Backend is BackendAuto, BackendBPF or BackendMemory.
	Backend string `mapstructure:"ipcache-backend"`
	// Capacity is the number of entries of the map.
	Capacity int `mapstructure:"bpf-ipcache-map-max"`
	// BPFRoot is where the BPF file system is, or is to be mounted.
	BPFRoot string `mapstructure:"bpf-root"`
	// BPFMapDir is the directory of this agent's maps below BPFRoot.
	BPFMapDir string `mapstructure:"bpf-map-dir"`
	// EnableIPv4 and EnableIPv6 decide which identity "outside" has.
	EnableIPv4 bool `mapstructure:"enable-ipv4"`
	EnableIPv6 bool `mapstructure:"enable-ipv6"`
	// UnderlayProtocol is "ipv4" or "ipv6": what tunnels between nodes run over.
	UnderlayProtocol string `mapstructure:"underlay-protocol"`
}

// DefaultConfig has upstream's defaults where upstream has the flag. The map's
// size is the power of two that holds 500,000 endpoints and, for each of 50,000
// nodes, ten entries (two families of two addresses, health, ingress and pod
// CIDR); upstream's 512,000 doesn't. Memory is taken for what is in it only.
var DefaultConfig = Config{
	Backend:          BackendAuto,
	Capacity:         1 << 20,
	BPFRoot:          "/sys/fs/bpf",
	BPFMapDir:        "waggle",
	EnableIPv4:       true,
	EnableIPv6:       true,
	UnderlayProtocol: "ipv4",
}

// Flags implements cell.Flagger.
func (c Config) Flags(flags *pflag.FlagSet) {
	flags.String(flagBackend, c.Backend,
		"Where the ipcache map is: \"bpf\" (the kernel), \"memory\" (for trials; no datapath reads it) or \"auto\" (the kernel where permitted, else memory)")
	flags.Int(flagMapMax, c.Capacity, "Maximum number of entries in the ipcache map; a pinned map of another size is replaced")
	flags.String(flagRoot, c.BPFRoot, "Path to the BPF file system, which is mounted there if it isn't")
	flags.String(flagMapDir, c.BPFMapDir, "Directory below --bpf-root for the maps of this agent alone")
	flags.Bool(flagIPv4, c.EnableIPv4, "Enable IPv4 support")
	flags.Bool(flagIPv6, c.EnableIPv6, "Enable IPv6 support")
	flags.String(flagUnderlay, c.UnderlayProtocol, "IP family for the underlay (\"ipv4\" or \"ipv6\")")
}

func (c Config) validate() error {
	switch c.Backend {
	case BackendAuto, BackendBPF, BackendMemory:
	default:
		return fmt.Errorf("--%s=%q: must be auto, bpf or memory", flagBackend, c.Backend)
	}
	switch c.UnderlayProtocol {
	case "ipv4", "ipv6":
	default:
		return fmt.Errorf("--%s=%q: must be ipv4 or ipv6", flagUnderlay, c.UnderlayProtocol)
	}
	if c.Capacity <= 0 || c.Capacity > math.MaxInt32 {
		return fmt.Errorf("--%s=%d: must be between 1 and %d", flagMapMax, c.Capacity, math.MaxInt32)
	}
	// Not below the root, or the root itself, it would be another program's.
	if dir := filepath.Clean(c.BPFMapDir); !filepath.IsLocal(c.BPFMapDir) || dir == "." {
		return fmt.Errorf("--%s=%q: must be a relative path below --%s", flagMapDir, c.BPFMapDir, flagRoot)
	} else if strings.Contains(dir, ".") {
		return fmt.Errorf("--%s=%q: the BPF file system takes no name with a dot", flagMapDir, c.BPFMapDir)
	}
	if !filepath.IsAbs(c.BPFRoot) {
		return fmt.Errorf("--%s=%q: must be an absolute path", flagRoot, c.BPFRoot)
	}
	if !c.EnableIPv4 && !c.EnableIPv6 {
		return fmt.Errorf("--%s=false and --%s=false: at least one must be true", flagIPv4, flagIPv6)
	}
	return nil
}

// params are what a reconciler takes.
type params struct {
	cell.In

	Log       *slog.Logger
	Health    cell.Health
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	DB        *statedb.DB
	Config    Config
	Cluster   wire.ClusterInfo
	Endpoints statedb.Table[*state.Endpoint]
	Nodes     statedb.Table[*state.Node]
	Target    *Datapath
}

func register(p params) *reconciler {
	r := newReconciler(p.Log, p.Health, p.DB, rules{
		clusterName:  p.Cluster.Name,
		ipv4:         p.Config.EnableIPv4,
		ipv6:         p.Config.EnableIPv6,
		underlayIPv6: p.Config.UnderlayProtocol == "ipv6",
	}, p.Endpoints, p.Nodes, p.Target)
	// This hook comes after the Datapath's, which was appended when that was
	// made: the job never meets a map that isn't open yet.
	p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		p.Jobs.Add(job.OneShot("reconcile", r.run))
		return nil
	}})
	return r
}
