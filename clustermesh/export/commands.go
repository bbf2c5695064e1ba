// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"fmt"
	"io"
	"strings"

	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/script"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

type commandParams struct {
	cell.In

	DB         *statedb.DB
	Client     *etcd.Client
	Exporter   *Exporter
	Cluster    wire.ClusterInfo
	Namespaces filter.NamespacePolicy
	Workloads  filter.WorkloadPolicy
	Config     Config

	Endpoints      statedb.Table[*state.Endpoint]
	Identities     statedb.Table[*state.Identity]
	NamespaceTable statedb.Table[*state.Namespace]
	WorkloadTable  statedb.Table[*state.Workload]
	ExportTable    statedb.Table[*state.Export]
}

// filterCommands are the commands about filters, for the shell and for scripts.
func filterCommands(p commandParams) hive.ScriptCmdsOut {
	x := &explainer{
		cluster: p.Cluster.Name, namespaces: p.Namespaces, workloads: p.Workloads, region: p.Config.ClusterRegion,
		tables: state.Tables{
			Endpoints: p.Endpoints, Identities: p.Identities, Namespaces: p.NamespaceTable,
			Workloads: p.WorkloadTable, Exports: p.ExportTable,
		},
	}
	return hive.NewScriptCmds(map[string]script.Cmd{
		"filter/explain": explainCommand(p, x),
		"filter/status":  statusCommand(p.DB, x),
	})
}

func explainCommand(p commandParams, x *explainer) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "say why a pod is or isn't synced to other clusters",
			Args:    "NAMESPACE/POD",
			Flags:   output.Flag,
			Detail:  []string{"Which rules apply to it, what follows for each of its addresses, and what etcd has of them."},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, fmt.Errorf("%w: one pod", script.ErrUsage)
			}
			namespace, pod, ok := strings.Cut(args[0], "/")
			if !ok || namespace == "" || pod == "" || strings.Contains(pod, "/") {
				return nil, fmt.Errorf("%q: must be NAMESPACE/POD", args[0])
			}
			answer := x.explain(p.DB.ReadTxn(), namespace, pod)
			select {
			case <-p.Exporter.Synced():
				answer.Written = true
			default:
			}
			answer.refused(p.Exporter.refusal)
			has, err := p.Client.Existing(s.Context(), answer.keys())
			if err != nil {
				answer.EtcdError = err.Error()
			} else {
				answer.found(has)
			}
			return output.Answer(s.Flags, answer, answer.Print)
		},
	)
}

func statusCommand(db *statedb.DB, x *explainer) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "say how much is pushed, on demand, and kept at home",
			Flags: func(flags *pflag.FlagSet) {
				output.Flag(flags)
				flags.Int("examples", 10, "How many pods with malformed settings are named")
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 0 {
				return nil, fmt.Errorf("%w: no arguments", script.ErrUsage)
			}
			limit, err := s.Flags.GetInt("examples")
			if err != nil {
				return nil, err
			}
			status := x.status(db.ReadTxn(), limit)
			return output.Answer(s.Flags, status, func(w io.Writer) error {
				return PrintFilterStatus(w, []FilterStatus{status}, true)
			})
		},
	)
}
