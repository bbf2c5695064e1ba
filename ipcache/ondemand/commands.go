// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/hive"
	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
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
			Flags: func(flags *pflag.FlagSet) {
				flags.StringP("output", "o", "text", "How it is printed: text or json")
			},
		},
		func(st *script.State, args ...string) (script.WaitFunc, error) {
			output, err := st.Flags.GetString("output")
			if err != nil {
				return nil, err
			}
			if len(args) != 0 || output != "text" && output != "json" {
				return nil, script.ErrUsage
			}
			return func(*script.State) (string, string, error) {
				list, err := s.List()
				if err != nil {
					return "", "", err
				}
				var out strings.Builder
				if output == "json" {
					err = json.NewEncoder(&out).Encode(list)
				} else {
					err = list.Print(&out)
				}
				return out.String(), "", err
			}, nil
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
					out = fmt.Sprintf("%s of cluster %s: %s: %s\n", addr, printable(r.Question.Cluster), r.Outcome, printableText(err.Error()))
				}
				return out, "", nil
			}, nil
		},
	)
}
