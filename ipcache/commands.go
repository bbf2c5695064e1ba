// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"text/tabwriter"

	"github.com/cilium/hive"
	"github.com/cilium/hive/script"
)

// scriptCommands are the commands for the shell and for script tests.
func scriptCommands(m *Datapath) hive.ScriptCmdsOut {
	return hive.NewScriptCmds(map[string]script.Cmd{
		"ipcache/list": listCommand(m),
		"ipcache/get":  getCommand(m),
	})
}

func listCommand(m Map) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "List the entries of the ipcache map",
			Detail: []string{
				"Reads the map itself, as 'cilium-dbg bpf ipcache list' does, and",
				"prints it in the same form, IPv4 first, ordered by address.",
			},
		},
		func(*script.State, ...string) (script.WaitFunc, error) {
			return func(*script.State) (string, string, error) {
				out, err := dump(m)
				return out, "", err
			}, nil
		},
	)
}

func getCommand(m Map) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "Look an address up in the ipcache map",
			Args:    "address",
			Detail:  []string{"Finds the longest prefix that holds the address, as the datapath does."},
		},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, script.ErrUsage
			}
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				return nil, fmt.Errorf("%w: %w", script.ErrUsage, err)
			}
			return func(*script.State) (string, string, error) {
				entry, ok := m.Lookup(addr)
				if !ok {
					return "", "", fmt.Errorf("%s does not map to any identity", addr)
				}
				return fmt.Sprintf("%s maps to %s\n", addr, entry.Value), "", nil
			}, nil
		},
	)
}

// dump is the map as a table of text.
func dump(m Map) (string, error) {
	var entries []Entry
	for entry, err := range m.All() {
		if err != nil {
			return "", err
		}
		entries = append(entries, entry)
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), bytes.Compare(a.IP[:], b.IP[:]),
			cmp.Compare(a.PrefixLen, b.PrefixLen))
	})

	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "IP PREFIX/ADDRESS\tIDENTITY")
	for _, entry := range entries {
		fmt.Fprintf(table, "%s\t%s\n", entry.Key, entry.Value)
	}
	err := table.Flush()
	return out.String(), err
}
