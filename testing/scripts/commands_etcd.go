// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// etcdCommands are the commands for what happens to etcds.
func (m *Mesh) etcdCommands() map[string]script.Cmd {
	return map[string]script.Cmd{
		"start":         m.etcdStartCommand(),
		"stop":          m.etcdStopCommand(),
		"wipe":          m.etcdWipeCommand(),
		"compact":       m.etcdCompactCommand(),
		"expire-leases": m.etcdExpireLeasesCommand(),
		"put-on-lease":  m.etcdPutOnLeaseCommand(),
	}
}

func revisionFlag(flags *pflag.FlagSet) {
	flags.Int64("revision", 0, "raise the etcd's revision to this before it is seen")
}

func (m *Mesh) etcdStartCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "start etcds: empty ones, or those that etcd/stop stopped",
			Args:    "ETCD...",
			Flags:   revisionFlag,
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			revision, err := s.Flags.GetInt64("revision")
			if err != nil {
				return nil, err
			}
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: which etcds", script.ErrUsage)
			}
			// One takes most of a second to elect itself, so they start at once.
			var starts errgroup.Group
			for _, name := range args {
				srv := m.addServer(s, name)
				starts.Go(func() error { return srv.start(s.Context(), m.options.Log, revision) })
			}
			if err := starts.Wait(); err != nil {
				return nil, err
			}
			for _, name := range args {
				m.addStoreCommands(m.servers[name])
			}
			return nil, nil
		},
	)
}

func (m *Mesh) etcdStopCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "stop etcds; their data stay",
			Args:    "ETCD...",
		},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: which etcds", script.ErrUsage)
			}
			for _, name := range args {
				srv, err := m.server(name)
				if err != nil {
					return nil, err
				}
				if err := m.halt(srv); err != nil {
					return nil, err
				}
			}
			return nil, nil
		},
	)
}

// The values of etcd/wipe --token.
const (
	tokenSame  = "same"
	tokenOther = "other"
)

func (m *Mesh) etcdWipeCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "stop an etcd and start it at the same address with its data lost",
			Args:    "ETCD",
			Flags: func(flags *pflag.FlagSet) {
				flags.String("token", tokenOther, `"same" gives it the cluster ID that it had, "other" another one`)
				revisionFlag(flags)
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			token, err := s.Flags.GetString("token")
			if err != nil {
				return nil, err
			}
			revision, err := s.Flags.GetInt64("revision")
			if err != nil {
				return nil, err
			}
			if len(args) != 1 || (token != tokenSame && token != tokenOther) {
				return nil, fmt.Errorf("%w: one etcd, and a token that is same or other", script.ErrUsage)
			}
			srv, err := m.server(args[0])
			if err != nil {
				return nil, err
			}
			if err := m.halt(srv); err != nil {
				return nil, err
			}
			if err := srv.wipe(token == tokenSame); err != nil {
				return nil, err
			}
			if err := srv.start(s.Context(), m.options.Log, revision); err != nil {
				return nil, err
			}
			m.addStoreCommands(srv)
			return nil, nil
		},
	)
}

// withClient runs something on an etcd that must be running.
func (m *Mesh) withClient(ctx context.Context, name string, do func(context.Context, *clientv3.Client) error) error {
	srv, err := m.server(name)
	if err != nil {
		return err
	}
	return srv.do(ctx, do)
}

func (m *Mesh) etcdCompactCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "make an etcd forget its history, so that who was away has to list",
			Args:    "ETCD",
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, fmt.Errorf("%w: an etcd", script.ErrUsage)
			}
			return nil, m.withClient(s.Context(), args[0], compact)
		},
	)
}

func (m *Mesh) etcdExpireLeasesCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "let all leases of an etcd run out, and the keys on them go",
			Args:    "ETCD",
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 {
				return nil, fmt.Errorf("%w: an etcd", script.ErrUsage)
			}
			return nil, m.withClient(s.Context(), args[0], func(ctx context.Context, client *clientv3.Client) error {
				n, err := expireLeases(ctx, client)
				s.Logf("%d leases\n", n)
				return err
			})
		},
	)
}

func (m *Mesh) etcdPutOnLeaseCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "write a key on a lease that nobody keeps alive",
			Args:    "ETCD KEY TTL",
			Detail: []string{
				"Once the key is gone, so is what hung on a lease of that TTL which nobody has kept alive since: a way to wait for that without a clock.",
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 3 {
				return nil, fmt.Errorf("%w: an etcd, a key and a duration", script.ErrUsage)
			}
			ttl, err := time.ParseDuration(args[2])
			if err != nil {
				return nil, fmt.Errorf("%w: %w", script.ErrUsage, err)
			}
			return nil, m.withClient(s.Context(), args[0], func(ctx context.Context, client *clientv3.Client) error {
				return putOnLease(ctx, client, args[1], ttl)
			})
		},
	)
}

// historyCommand is ETCD/kvstore/history.
func historyCommand(srv *server) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "print what happened to the keys below a prefix: PUT key, DELETE key",
			Args:    "PREFIX [output-file]",
			Flags: func(flags *pflag.FlagSet) {
				flags.Bool("deleted", false, "only what was deleted")
			},
			Detail: []string{
				"Goes back to when the etcd was started empty, or compacted. It shows what a look at the present can't: that a key was never gone.",
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 1 && len(args) != 2 {
				return nil, fmt.Errorf("%w: a prefix, and maybe a file", script.ErrUsage)
			}
			onlyDeleted, err := s.Flags.GetBool("deleted")
			if err != nil {
				return nil, err
			}
			var text string
			err = srv.do(s.Context(), func(ctx context.Context, client *clientv3.Client) (err error) {
				text, err = history(ctx, client, args[0], onlyDeleted)
				return err
			})
			if err != nil {
				return nil, err
			}
			if len(args) == 2 {
				return nil, os.WriteFile(s.Path(args[1]), []byte(text), 0o644)
			}
			return func(*script.State) (string, string, error) { return text, "", nil }, nil
		},
	)
}

// vanishedCommand is ETCD/kvstore/vanished.
func vanishedCommand(srv *server) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "print what was below one of some prefixes and then below none of them",
			Args:    "PREFIX...",
			Detail: []string{
				"For keys that move from one prefix to another, which are named without it: those that were in neither place are printed, one line for each time.",
				"It goes as far back as kvstore/history, revision by revision.",
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: which prefixes", script.ErrUsage)
			}
			var text string
			err := srv.do(s.Context(), func(ctx context.Context, client *clientv3.Client) (err error) {
				text, err = vanished(ctx, client, args)
				return err
			})
			if err != nil {
				return nil, err
			}
			return func(*script.State) (string, string, error) { return text, "", nil }, nil
		},
	)
}
