// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"io"
	"time"

	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/script"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Command is the command for the shell and for script tests.
const Command = "waggle/status"

// Cell provides the command. It is for any hive with the tables of cells/state.
var Cell = cell.Module(
	"status",
	"How this process is and why what is not well is not",

	// Since when it isn't.
	cell.ProvidePrivate(newSince),
	// waggle/status.
	cell.Provide(func(parts params) hive.ScriptCmdsOut {
		return hive.NewScriptCmds(map[string]script.Cmd{Command: command(parts)})
	}),
)

// Host is provided by a hive that isn't ours alone.
type Host struct {
	// Module has all of our cells in it. What other modules say of themselves is told by
	// the host, and doesn't make us unhealthy.
	Module string
	// Off says that none of our cells has anything to do.
	Off bool
}

// params are what a report is made of.
type params struct {
	cell.In

	DB        *statedb.DB
	Health    statedb.Table[types.Status]
	Clusters  statedb.Table[*state.RemoteCluster]
	Datastore statedb.Table[*state.Datastore]
	Exports   statedb.Table[*state.Export]

	Since *since
	Host  Host `optional:"true"`

	Cluster  wire.ClusterInfo `optional:"true"`
	Writer   *etcd.Writer     `optional:"true"`
	Lists    *etcd.ListBound  `optional:"true"`
	OnDemand OnDemandFunc     `optional:"true"`
	IPCache  IPCacheFunc      `optional:"true"`
}

type (
	// OnDemandFunc is provided where misses are resolved: programs without it don't link it.
	OnDemandFunc func() OnDemand
	// IPCacheFunc is provided where there is an ipcache, likewise.
	IPCacheFunc func() IPCache
)

func command(parts params) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Show how this process is, and why whatever isn't well isn't",
			Flags:   output.Flag,
		},
		func(st *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 0 {
				return nil, script.ErrUsage
			}
			report := parts.report()
			return output.Answer(st.Flags, report, func(w io.Writer) error { return report.Print(w, time.Now()) })
		},
	)
}
