// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// scriptTimeout bounds one command of a script; it only matters where an etcd
// doesn't answer.
const scriptTimeout = 10 * time.Second

// ScriptCommands are the commands by which a script test looks into an etcd and
// changes it: kvstore/list, kvstore/update and kvstore/delete, with the
// arguments and the output of upstream's commands of these names.
func ScriptCommands(client *Client) map[string]script.Cmd {
	return map[string]script.Cmd{
		"kvstore/list":   listCommand(client),
		"kvstore/update": updateCommand(client),
		"kvstore/delete": deleteCommand(client),
	}
}

// opened is the plain client, once the hive that opens it was started.
func opened(client *Client) (*clientv3.Client, error) {
	if etcd := client.Etcd(); etcd != nil {
		return etcd, nil
	}
	return nil, errors.New("the etcd client isn't open: hive/start opens it")
}

func listCommand(client *Client) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "list keys and values below a prefix",
			Args:    "[prefix] [output-file]",
			Flags: func(flags *pflag.FlagSet) {
				flags.StringP("output", "o", "plain", "How values are printed: plain or json")
				flags.Bool("keys-only", false, "Print no values")
				flags.Bool("values-only", false, "Print no keys")
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			format, err := listFormatOf(s.Flags)
			if err != nil {
				return nil, err
			}
			if len(args) > 2 {
				return nil, fmt.Errorf("%w: at most a prefix and an output file", script.ErrUsage)
			}
			var prefix string
			if len(args) > 0 {
				prefix = args[0]
			}
			ctx, cancel := context.WithTimeout(s.Context(), scriptTimeout)
			defer cancel()
			etcd, err := opened(client)
			if err != nil {
				return nil, err
			}
			resp, err := etcd.Get(ctx, prefix, clientv3.WithPrefix())
			if err != nil {
				return nil, fmt.Errorf("listing %q: %w", prefix, err)
			}
			text := format.print(resp.Kvs)
			if len(args) == 2 {
				if err := os.WriteFile(s.Path(args[1]), text, 0o644); err != nil {
					return nil, fmt.Errorf("writing the list of %q: %w", prefix, err)
				}
				return nil, nil
			}
			return func(*script.State) (stdout, stderr string, err error) { return string(text), "", nil }, nil
		},
	)
}

// listFormat is how kvstore/list prints.
type listFormat struct {
	keys, values, json bool
}

func listFormatOf(flags *pflag.FlagSet) (listFormat, error) {
	output, err := flags.GetString("output")
	if err != nil {
		return listFormat{}, err
	}
	keysOnly, err := flags.GetBool("keys-only")
	if err != nil {
		return listFormat{}, err
	}
	valuesOnly, err := flags.GetBool("values-only")
	if err != nil {
		return listFormat{}, err
	}
	switch {
	case keysOnly && valuesOnly:
		return listFormat{}, errors.New("--keys-only and --values-only exclude each other")
	case output != "plain" && output != "json":
		return listFormat{}, fmt.Errorf("--output %q: neither plain nor json", output)
	}
	return listFormat{keys: !valuesOnly, values: !keysOnly, json: output == "json"}, nil
}

// print gives a line "# key" and the value for each pair, in the order of keys.
func (f listFormat) print(kvs []*mvccpb.KeyValue) []byte {
	var out bytes.Buffer
	for _, kv := range kvs {
		if f.keys {
			fmt.Fprintf(&out, "# %s\n", kv.Key)
		}
		switch {
		case !f.values:
			continue
		case !f.json:
			out.Write(kv.Value)
		default:
			if err := json.Indent(&out, kv.Value, "", "  "); err != nil {
				fmt.Fprintf(&out, "ERROR: %s", err)
			}
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

func updateCommand(client *Client) script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "write a key", Args: "key value-file"},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, fmt.Errorf("%w: a key and a file with its value", script.ErrUsage)
			}
			value, err := os.ReadFile(s.Path(args[1]))
			if err != nil {
				return nil, fmt.Errorf("reading the value of %q: %w", args[0], err)
			}
			ctx, cancel := context.WithTimeout(s.Context(), scriptTimeout)
			defer cancel()
			etcd, err := opened(client)
			if err != nil {
				return nil, err
			}
			if _, err := etcd.Put(ctx, args[0], string(value)); err != nil {
				return nil, fmt.Errorf("writing %q: %w", args[0], err)
			}
			return nil, nil
		},
	)
}

func deleteCommand(client *Client) script.Cmd {
	return script.Command(
		script.CmdUsage{Summary: "delete a key", Args: "key"},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, fmt.Errorf("%w: a key", script.ErrUsage)
			}
			ctx, cancel := context.WithTimeout(s.Context(), scriptTimeout)
			defer cancel()
			etcd, err := opened(client)
			if err != nil {
				return nil, err
			}
			if _, err := etcd.Delete(ctx, args[0]); err != nil {
				return nil, fmt.Errorf("deleting %q: %w", args[0], err)
			}
			return nil, nil
		},
	)
}
