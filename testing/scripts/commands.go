// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/script"
	"github.com/spf13/pflag"
)

// addCommands adds what a script can do from its first line on.
func (m *Mesh) addCommands() {
	m.add("", map[string]script.Cmd{"file/fill": fillCommand()})
	m.add("etcd", m.etcdCommands())
	m.add("mesh", map[string]script.Cmd{
		"connect":    m.connectCommand(),
		"disconnect": m.disconnectCommand(),
	})
	m.add("net", map[string]script.Cmd{
		"cut":    m.cutCommand(),
		"heal":   m.healCommand(),
		"switch": m.switchCommand(),
	})
	for _, kind := range []string{exporter, kvstoremesh, agent, cache} {
		m.add(kind, map[string]script.Cmd{
			"start":   m.startCommand(kind),
			"stop":    m.stopCommand(kind),
			"restart": m.restartCommand(kind),
		})
	}
}

// startDetail says of each kind of part what its start has to know.
var startDetail = map[string][]string{
	exporter: {
		"It reads the cluster's Kubernetes and writes to the etcd of the cluster's name.",
		"With --etcd=NAME it writes to that one and is called CLUSTER/exporter@NAME.",
	},
	kvstoremesh: {
		"It reads the clusters that mesh/connect tells of, and writes to the etcd of the cluster's name.",
	},
	agent: {
		"It reads the clusters that mesh/connect tells of, and writes to a map in memory, or to the kernel's with --ipcache-backend=bpf.",
		"With --local its tables also have what the cluster's own Kubernetes says.",
		"With --cache they have what the etcd CLUSTER-cache says of it, or with --cache=NAME that one; its link is called CLUSTER/agent.",
	},
	cache: {
		"It reads the cluster's Kubernetes and writes to the etcd CLUSTER-cache, for the cluster's own agents. The ID may be 0.",
		"With --etcd=NAME it writes to that one and is called CLUSTER/cache@NAME.",
	},
}

func (m *Mesh) startCommand(kind string) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "start the " + kind + " of a cluster",
			Args:    "CLUSTER [flags...]",
			Detail: append([]string{
				"Flags are those of the program; the first part of a cluster needs --cluster-id.",
			}, startDetail[kind]...),
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) == 0 || strings.HasPrefix(args[0], "-") {
				return nil, fmt.Errorf("%w: the cluster's name comes first", script.ErrUsage)
			}
			p, err := m.newPart(s, kind, args[0], args[1:])
			if err != nil {
				return nil, err
			}
			return nil, m.run(s.Context(), p)
		},
	)
}

// newPart makes a part with its links and its directory of configurations.
func (m *Mesh) newPart(s *script.State, kind, name string, args []string) (*part, error) {
	c := m.cluster(s, name)
	flags, err := c.identity(args)
	if err != nil {
		return nil, err
	}
	full := name + "/" + kind
	var parts []cell.Cell
	switch kind {
	case exporter, kvstoremesh, cache:
		etcdName := name
		if kind == cache {
			etcdName = cacheEtcd(name)
		}
		if rest, other, ok := cutFlag(args, "etcd"); ok {
			args, etcdName, full = rest, other, full+"@"+other
		}
		srv, err := m.server(etcdName)
		if err != nil {
			return nil, err
		}
		l, err := m.link(full, srv)
		if err != nil {
			return nil, err
		}
		flags = append(flags, etcdFlag(l.url()))
		switch kind {
		case exporter:
			parts = c.exporterCells()
		case kvstoremesh:
			parts = c.kvstoreMeshCells()
		case cache:
			parts = c.cacheCells()
		}
	case agent:
		rest, _, local := cutFlag(args, "local")
		args = rest
		flags = append(flags, "--ipcache-backend=memory", "--bpf-map-dir="+m.bpfDir+"-"+name,
			"--state-dir="+filepath.Join(c.dir, "state"), "--incluster-cache-relist-jitter=10ms")
		if rest, etcdName, cached := cutFlag(args, "cache"); cached {
			args = rest
			if etcdName == "" {
				etcdName = cacheEtcd(name)
			}
			srv, err := m.server(etcdName)
			if err != nil {
				return nil, err
			}
			l, err := m.link(full, srv)
			if err != nil {
				return nil, err
			}
			flags = append(flags, "--datastore=etcd", etcdFlag(l.url()))
		}
		if !local {
			flags = append(flags, "--enable-k8s=false")
		}
		parts = c.agentCells(local)
	}
	if kind == kvstoremesh || kind == agent {
		dir := c.configDir(kind)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the directory of configurations: %w", err)
		}
		if kind == kvstoremesh || c.id != "0" { // a cluster without an ID is in no mesh
			flags = append(flags, "--clustermesh-config="+dir)
		}
	}
	if p, ok := m.parts[full]; ok && p.hive != nil {
		return nil, fmt.Errorf("%s runs already", full)
	}
	return &part{name: full, log: m.options.Log.With("part", full), cells: parts, args: append(flags, args...)}, nil
}

// partOf finds the part that a stop or a restart is about.
func (m *Mesh) partOf(kind string, args []string) (*part, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("%w: one cluster's name", script.ErrUsage)
	}
	name, suffix, at := strings.Cut(args[0], "@")
	name += "/" + kind
	if at {
		name += "@" + suffix
	}
	return m.part(name)
}

func (m *Mesh) stopCommand(kind string) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "stop the " + kind + " of a cluster",
			Args:    "CLUSTER",
			Detail:  []string{"What it has written stays, until its leases run out."},
		},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			p, err := m.partOf(kind, args)
			if err != nil {
				return nil, err
			}
			return nil, p.stop()
		},
	)
}

func (m *Mesh) restartCommand(kind string) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "stop the " + kind + " of a cluster and start a new one with the same flags",
			Args:    "CLUSTER",
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			p, err := m.partOf(kind, args)
			if err != nil {
				return nil, err
			}
			if err := p.stop(); err != nil {
				return nil, err
			}
			return nil, m.run(s.Context(), p)
		},
	)
}

func (m *Mesh) connectCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "let a cluster know another one",
			Args:    "CLUSTER OTHER",
			Flags: func(flags *pflag.FlagSet) {
				flags.Bool("direct", false, "the agent reads OTHER's etcd itself, without KVStoreMesh")
				flags.String("via", "", "the etcd in which to find OTHER, instead of its own")
			},
			Detail: []string{
				"Writes the etcd configurations mesh/CLUSTER/kvstoremesh/OTHER, for OTHER's etcd, and mesh/CLUSTER/agent/OTHER, for the cluster's own.",
				"Their links are called CLUSTER/kvstoremesh/OTHER and CLUSTER/agent/OTHER.",
			},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, fmt.Errorf("%w: two clusters", script.ErrUsage)
			}
			direct, err := s.Flags.GetBool("direct")
			if err != nil {
				return nil, err
			}
			source, err := s.Flags.GetString("via")
			if err != nil {
				return nil, err
			}
			if source == "" {
				source = args[1]
			}
			if direct {
				return nil, m.connect(s, agent, args[0], args[1], source)
			}
			if err := m.connect(s, kvstoremesh, args[0], args[1], source); err != nil {
				return nil, err
			}
			return nil, m.connect(s, agent, args[0], args[1], args[0])
		},
	)
}

// connect has a part of a cluster find another cluster in an etcd.
func (m *Mesh) connect(s *script.State, kind, name, other, in string) error {
	srv, err := m.server(in)
	if err != nil {
		return err
	}
	full := name + "/" + kind + "/" + other
	_, known := m.links[full]
	l, err := m.link(full, srv)
	if err != nil {
		return err
	}
	if known {
		l.lead(srv)
	}
	return m.cluster(s, name).connect(kind, other, l.url())
}

func (m *Mesh) disconnectCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "let a cluster forget another one",
			Args:    "CLUSTER OTHER",
			Detail:  []string{"Removes what mesh/connect has written."},
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, fmt.Errorf("%w: two clusters", script.ErrUsage)
			}
			var any bool
			for _, kind := range []string{agent, kvstoremesh} {
				was, err := m.cluster(s, args[0]).disconnect(kind, args[1])
				if err != nil {
					return nil, fmt.Errorf("disconnecting: %w", err)
				}
				any = any || was
			}
			if !any {
				return nil, fmt.Errorf("%q wasn't connected to %q", args[0], args[1])
			}
			return nil, nil
		},
	)
}

func (m *Mesh) cutCommand() script.Cmd {
	return m.linksCommand("lose all connections of links and refuse new ones", (*link).cut)
}

func (m *Mesh) healCommand() script.Cmd {
	return m.linksCommand("undo net/cut", (*link).heal)
}

func (m *Mesh) linksCommand(summary string, do func(*link)) script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: summary,
			Args:    "LINK...",
			Detail: []string{
				"CLUSTER/exporter and CLUSTER/kvstoremesh lead to the cluster's own etcd, CLUSTER/cache and CLUSTER/agent to that of its cache, CLUSTER/kvstoremesh/OTHER and CLUSTER/agent/OTHER to where OTHER is found.",
			},
		},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) == 0 {
				return nil, fmt.Errorf("%w: which links", script.ErrUsage)
			}
			for _, name := range args {
				l, err := m.linkNamed(name)
				if err != nil {
					return nil, err
				}
				do(l)
			}
			return nil, nil
		},
	)
}

func (m *Mesh) switchCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "have a link lead to another etcd, as a load balancer may at any time",
			Args:    "LINK ETCD",
		},
		func(_ *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, fmt.Errorf("%w: a link and an etcd", script.ErrUsage)
			}
			l, err := m.linkNamed(args[0])
			if err != nil {
				return nil, err
			}
			srv, err := m.server(args[1])
			if err != nil {
				return nil, err
			}
			l.lead(srv)
			return nil, nil
		},
	)
}

func fillCommand() script.Cmd {
	return script.Command(
		script.CmdUsage{
			Summary: "make a file of a size, for values that are too large for a script",
			Args:    "FILE BYTES",
		},
		func(s *script.State, args ...string) (script.WaitFunc, error) {
			if len(args) != 2 {
				return nil, fmt.Errorf("%w: a file and a size", script.ErrUsage)
			}
			size, err := strconv.ParseUint(args[1], 10, 31)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", script.ErrUsage, err)
			}
			return nil, os.WriteFile(s.Path(args[0]), bytes.Repeat([]byte("x"), int(size)), 0o644)
		},
	)
}
