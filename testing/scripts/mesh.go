// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package scripts

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	fakeclient "github.com/cilium/cilium/pkg/k8s/client/testutils"
	"github.com/cilium/hive/script"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// Options say how a script is run.
type Options struct {
	// Log takes what the parts log.
	Log *slog.Logger
	// Faults is the probability (0 to 1) that a connection between a part and
	// an etcd is cut instead of passing on a message. 0 is none.
	Faults float64
}

// bpfRoot is where the BPF file system is, for agents that a script has write
// into the kernel's map.
const bpfRoot = "/sys/fs/bpf"

// Mesh is all that one script has started. It is used by one goroutine at a
// time, that of the script.
type Mesh struct {
	options Options
	// cmds are the engine's commands: a part that starts adds its own.
	cmds     map[string]script.Cmd
	servers  map[string]*server
	links    map[string]*link
	clusters map[string]*cluster
	parts    map[string]*part
	// order has the names of the parts in the order of their start.
	order []string
	// bpfDir is the directory of maps of this mesh's agents.
	bpfDir string
	// failure is what the last command that failed said.
	failure error
}

// New makes a Mesh in which nothing runs.
func New(options Options) *Mesh {
	m := &Mesh{
		options:  options,
		cmds:     map[string]script.Cmd{},
		servers:  map[string]*server{},
		links:    map[string]*link{},
		clusters: map[string]*cluster{},
		parts:    map[string]*part{},
		bpfDir:   "waggle-script-" + rand.Text()[:8],
	}
	m.add("", script.DefaultCmds())
	// Scripts wait for conditions: "* command" tries again until it is so.
	delete(m.cmds, "sleep")
	m.addCommands()
	return m
}

// LastFailure is what the last command that failed said, which of a command that
// was tried until the script's time was over is not in the engine's error.
func (m *Mesh) LastFailure() error { return m.failure }

// Close stops everything, what was started last first.
func (m *Mesh) Close() error {
	var errs []error
	for _, c := range m.clusters {
		if c.churn != nil {
			errs = append(errs, c.churn.stop())
		}
	}
	for _, name := range slices.Backward(m.order) {
		errs = append(errs, m.parts[name].stop())
	}
	for _, l := range m.links {
		errs = append(errs, l.close())
	}
	for _, s := range m.servers {
		errs = append(errs, m.halt(s))
	}
	errs = append(errs, m.removeMaps())
	return errors.Join(errs...)
}

// removeMaps removes the BPF maps that agents have pinned.
func (m *Mesh) removeMaps() error {
	dirs, err := filepath.Glob(filepath.Join(bpfRoot, m.bpfDir+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// server finds an etcd by name, which must have been started once.
func (m *Mesh) server(name string) (*server, error) {
	if s, ok := m.servers[name]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("there is no etcd %q: etcd/start makes one", name)
}

// addServer makes an etcd, or finds the one of that name.
func (m *Mesh) addServer(s *script.State, name string) *server {
	if _, ok := m.servers[name]; !ok {
		m.servers[name] = newServer(name, filepath.Join(workDir(s), "etcd", name))
	}
	return m.servers[name]
}

// halt stops an etcd, as a machine that fails does.
func (m *Mesh) halt(srv *server) error {
	return srv.stop(func() {
		for _, l := range m.links {
			l.lose(srv)
		}
	})
}

// addStoreCommands adds the commands of an etcd, which use the client that it has
// since its start.
func (m *Mesh) addStoreCommands(srv *server) {
	m.add(srv.name, etcd.ScriptCommands(srv.client))
	m.add(srv.name, map[string]script.Cmd{
		"kvstore/history":  historyCommand(srv),
		"kvstore/vanished": vanishedCommand(srv),
	})
}

// add adds the commands of something that has a name.
func (m *Mesh) add(name string, cmds map[string]script.Cmd) {
	for command, cmd := range cmds {
		full := path.Join(name, command)
		m.cmds[full] = &observed{Cmd: cmd, mesh: m, name: full}
	}
}

// observed is a command whose failures are noted down.
type observed struct {
	script.Cmd
	mesh *Mesh
	name string
}

// Run implements script.Cmd.
func (o *observed) Run(s *script.State, args ...string) (script.WaitFunc, error) {
	wait, err := o.Cmd.Run(s, args...)
	if o.failed(err); wait == nil {
		return nil, err
	}
	return func(s *script.State) (stdout, stderr string, err error) {
		stdout, stderr, err = wait(s)
		o.failed(err)
		return stdout, stderr, err
	}, err
}

func (o *observed) failed(err error) {
	// That the time is over says nothing of what was waited for.
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		o.mesh.failure = fmt.Errorf("%s: %w", o.name, err)
	}
}

// cluster finds a cluster by name, or makes it.
func (m *Mesh) cluster(s *script.State, name string) *cluster {
	c, ok := m.clusters[name]
	if !ok {
		c = &cluster{name: name, dir: filepath.Join(workDir(s), "mesh", name)}
		c.kube, _ = fakeclient.NewFakeClientset(m.options.Log)
		m.clusters[name] = c
		cmds := fakeclient.FakeClientCommands(c.kube)
		m.add(name, cmds)
		m.add(name, map[string]script.Cmd{
			"k8s/churn":      churnCommand(c, cmds),
			"k8s/churn-stop": churnStopCommand(c),
		})
	}
	return c
}

// link finds a link by name, or opens one that leads to srv.
func (m *Mesh) link(name string, srv *server) (*link, error) {
	if l, ok := m.links[name]; ok {
		return l, nil
	}
	l, err := newLink(m.options.Log.With("link", name), srv, m.options.Faults)
	if err != nil {
		return nil, err
	}
	m.links[name] = l
	return l, nil
}

// linkNamed finds a link that there must be.
func (m *Mesh) linkNamed(name string) (*link, error) {
	if l, ok := m.links[name]; ok {
		return l, nil
	}
	return nil, fmt.Errorf("there is no link %q, but: %s", name, strings.Join(slices.Sorted(maps.Keys(m.links)), ", "))
}

// part finds a part that there must be.
func (m *Mesh) part(name string) (*part, error) {
	if p, ok := m.parts[name]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("there is no %s, but: %s", name, strings.Join(m.order, ", "))
}

// run starts a part and adds its commands.
func (m *Mesh) run(ctx context.Context, p *part) error {
	cmds, err := p.start(ctx)
	if err != nil {
		return err
	}
	if _, ok := m.parts[p.name]; !ok {
		m.order = append(m.order, p.name)
	}
	m.parts[p.name] = p
	m.add(p.name, cmds)
	return nil
}

// workDir is the script's own directory, where its files are.
func workDir(s *script.State) string {
	if dir, ok := s.LookupEnv("WORK"); ok {
		return dir
	}
	return s.Getwd()
}
