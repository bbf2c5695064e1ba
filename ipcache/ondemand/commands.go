// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/hive"
	"github.com/cilium/hive/script"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// errOff is the answer of commands where the feature is off.
var errOff = errors.New("on-demand resolution is off: see --" + flagEnable)

// scriptCommands are the commands for the shell and for script tests.
func scriptCommands(s *Service) hive.ScriptCmdsOut {
	return hive.NewScriptCmds(map[string]script.Cmd{
		"ondemand/list": listCommand(s),
		"ondemand/miss": missCommand(s),
	})
}

func listCommand(s *Service) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "List what was resolved on demand, and what isn't looked at",
			Flags:   output.Flag,
		},
		func(st *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 0 {
				return nil, script.ErrUsage
			}
			list, err := s.List()
			if err != nil {
				return nil, err
			}
			return output.Answer(st.Flags, list, list.Print)
		},
	)
}

func missCommand(s *Service) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Resolve an address as if a packet to it had missed, and wait for the outcome",
			Args:    "address",
		},
		func(st *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, script.ErrUsage
			}
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				return nil, fmt.Errorf("%w: %w", script.ErrUsage, err)
			}
			if s.engine == nil {
				return nil, errOff
			}
			return func(st *script.State) (string, string, error) {
				// What waits for a turn has no deadline of its own.
				ctx, cancel := context.WithTimeout(st.Context(), 2*s.with.Config.LookupTimeout)
				defer cancel()
				r, err := s.engine.Resolve(ctx, addr)
				if r.Outcome == "" {
					return "", "", err
				}
				out := fmt.Sprintf("%s of cluster %s: %s\n", addr, printable(r.Question.Cluster), r.Outcome)
				if err != nil {
					out = fmt.Sprintf("%s of cluster %s: %s: %s\n", addr, printable(r.Question.Cluster), r.Outcome, filter.Printable(err.Error()))
				}
				return out, "", nil
			}, nil
		},
	)
}
