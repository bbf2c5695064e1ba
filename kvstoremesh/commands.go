// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/hive"
	"github.com/cilium/hive/script"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// filterCommands are the commands about filters, for the shell and for scripts.
func filterCommands(config Config, local wire.ClusterInfo, client *etcd.Client, db *statedb.DB, clusters tableOf) hive.ScriptCmdsOut {
	x := &explainer{region: config.ClusterRegion, cluster: local.Name, clusters: clusters}
	return hive.NewScriptCmds(map[string]script.Cmd{
		"filter/explain": explainCommand(x, db, client),
		"filter/status":  statusCommand(x, db),
	})
}

func explainCommand(x *explainer, db *statedb.DB, client *etcd.Client) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "say what is taken of a remote cluster's endpoints",
			Args:    "CLUSTER [ADDRESS...]",
			Flags:   output.Flag,
			Detail:  []string{"Says how the cluster is seen from here, and which of the addresses the local etcd has of it."},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: a remote cluster", script.ErrUsage)
			}
			var addresses []netip.Prefix
			for _, arg := range args[1:] {
				address, err := wire.ParseEndpointKey(arg)
				if err != nil {
					return nil, fmt.Errorf("%q is no address of an endpoint: %w", arg, err)
				}
				addresses = append(addresses, address)
			}
			answer := x.explain(db.ReadTxn(), args[0], addresses)
			if err := answer.look(s.Context(), client); err != nil {
				answer.EtcdError = err.Error()
			}
			return output.Answer(s.Flags, answer, answer.print)
		},
	)
}

func statusCommand(x *explainer, db *statedb.DB) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "say how many endpoints of remote clusters are left out by their region",
			Flags:   output.Flag,
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 0 {
				return nil, fmt.Errorf("%w: no arguments", script.ErrUsage)
			}
			status := x.status(db.ReadTxn())
			return output.Answer(s.Flags, status, func(w io.Writer) error {
				return PrintFilterStatus(w, []FilterStatus{status}, true)
			})
		},
	)
}
