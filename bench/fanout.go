// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// FanoutConfig is what to measure of many readers on one etcd.
type FanoutConfig struct {
	// Config's Mesh, Layout and Peers aren't used.
	Config
	// Agents is the number of readers.
	Agents int
	// Rate is the number of events per second.
	Rate float64
	// Duration is how long events are sent.
	Duration time.Duration
	// Drain is how long to wait afterwards for what hasn't arrived.
	Drain time.Duration
	// Commits are the sizes of commits to measure, in events.
	Commits []int
	// Proxy measures the same once more with the readers behind an etcd
	// grpc-proxy.
	Proxy bool
	// ProxyProgram is the program file of etcd; if empty, the one beside Program.
	ProxyProgram string
}

// The ways from the etcd to the readers.
const (
	// Direct is one connection from each reader to the etcd.
	Direct = "direct"
	// Proxied has one etcd grpc-proxy between them.
	Proxied = "proxy"
)

// fanoutMesh is the content of the etcd. Its endpoints are replaced in turns.
var fanoutMesh = Mesh{Clusters: 1, Endpoints: 2500, Nodes: 100, Identities: 100}

// etcdProgram is the file name of upstream's etcd, and its target in the
// Makefile below bin/.
const etcdProgram = "etcd"

// otherFiles is what a process has open beside its connections, with room to spare.
const otherFiles = 256

func (c FanoutConfig) validate() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	switch {
	case c.Agents < 1:
		return errors.New("there must be at least one agent")
	case uint64(c.Agents)+otherFiles > files.Max:
		// Each Go program raises its own limit as far as it may.
		return fmt.Errorf("%d agents: a process may have only %d files open (ulimit -Hn)", c.Agents, files.Max)
	case c.Rate <= 0 || c.Duration < time.Second:
		return errors.New("the rate must be positive, and the duration at least a second")
	case len(c.Commits) == 0:
		return errors.New("there must be at least one size of commits")
	}
	for i, size := range c.Commits {
		switch {
		case size < 1 || size > fanoutMesh.Endpoints:
			return fmt.Errorf("commits of %d events: must be between 1 and %d", size, fanoutMesh.Endpoints)
		case slices.Contains(c.Commits[:i], size):
			return fmt.Errorf("commits of %d events: named twice", size)
		case float64(size) > c.Rate*c.Duration.Seconds():
			return fmt.Errorf("commits of %d events: at %g events/s not one is full within %s", size, c.Rate, c.Duration)
		}
	}
	return nil
}

// Fanout measures what it costs an etcd, and whatever is between, to tell every
// event to many agents, against the number of events in a commit. Each event is
// a pod that is replaced by another one at the same address, due at its time; a
// commit is written when its last event is due. The agents are connections of
// one process, which do nothing with what they read but count it.
//
// A round in which an agent missed an event is an error.
func Fanout(ctx context.Context, config FanoutConfig) (*FanoutReport, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	seed := config.Mesh.Seed
	config.Mesh, config.Layout, config.CacheEtcds = fanoutMesh, LayoutCache, 1
	config.Mesh.Seed = seed
	paths := []string{Direct}
	var program string
	if config.Proxy {
		var err error
		if program, err = peerProgram(config.ProxyProgram, config.Program, etcdProgram); err != nil {
			return nil, err
		}
		paths = append(paths, Proxied)
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	head, err := b.head("fanout", nil)
	if err != nil {
		return nil, err
	}
	sources, err := b.startSources(ctx)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	head.Sources = sources.info
	report := &FanoutReport{Head: head, Agents: config.Agents, Rate: config.Rate, Seconds: config.Duration.Seconds()}
	run := 0
	b.expect(config.Rounds * len(paths) * len(config.Commits))
	for n := range config.Rounds {
		for _, path := range paths {
			for _, size := range config.Commits {
				run++
				b.progress("round %d of %d: %s, %d agents, commits of %d events", n+1, config.Rounds, path, config.Agents, size)
				f := fanout{
					benchmark: b, config: config, sources: sources, run: run,
					name: fmt.Sprintf("%s-%d-%d", path, size, n+1),
				}
				if path == Proxied {
					f.program = program
				}
				figures, err := f.round(ctx, size)
				if err != nil {
					return nil, fmt.Errorf("round %d, %s, commits of %d events: %w", n+1, path, size, err)
				}
				report.Rounds = append(report.Rounds, FanoutRound{Path: path, CommitSize: size, FanoutFigures: figures})
				b.stepDone()
			}
		}
	}
	return report, nil
}

// fanout is one round of one size of commits on one path.
type fanout struct {
	*benchmark
	config  FanoutConfig
	sources *sources
	run     int
	name    string
	// program is that of the proxy, if there is one.
	program string
}

func (f *fanout) round(ctx context.Context, size int) (_ FanoutFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.config.Timeout+f.config.Duration+f.config.Drain,
		fmt.Errorf("not done within %s beyond the time to measure", f.config.Timeout))
	defer cancel()
	source := f.sources.of(0)
	processes, url := []*process.Process{source.Process}, source.url
	if f.program != "" {
		proxy, address, err := f.startProxy(ctx, source.url)
		if err != nil {
			return FanoutFigures{}, err
		}
		defer proxy.Kill()
		processes, url = append(processes, proxy), address
	}
	readers, socket, err := f.startReaders(ctx, url)
	if err != nil {
		return FanoutFigures{}, err
	}
	defer readers.Kill()
	alive, stop := whileAlive(ctx, readers)
	defer stop()
	figures, err := f.measure(alive, size, socket, append(processes, readers))
	if err != nil {
		return FanoutFigures{}, fmt.Errorf("%w\n%s", err, readers.LogTail())
	}
	return figures, readers.Stop()
}

// startProxy starts an etcd grpc-proxy and waits until it answers.
func (f *fanout) startProxy(ctx context.Context, endpoint string) (*process.Process, string, error) {
	name := f.name + "-proxy"
	url := f.network.url()
	address := strings.TrimPrefix(url, "http://")
	p, err := process.Start(name, f.dir, []string{f.program, "grpc-proxy", "start",
		"--endpoints=" + endpoint, "--listen-addr=" + address, "--advertise-client-url=" + address,
		"--data-dir=" + filepath.Join(f.dir, name)}, nil)
	if err != nil {
		return nil, "", err
	}
	client, err := etcd.NewClient(f.benchmark.config.Log, etcd.ClientConfig{Endpoints: []string{url}})
	if err != nil {
		p.Kill()
		return nil, "", err
	}
	e := &etcdProcess{Process: p, url: url, client: client}
	defer client.Close()
	if err := e.waitReady(ctx); err != nil {
		p.Kill()
		return nil, "", fmt.Errorf("starting %s: %w\n%s", name, err, p.LogTail())
	}
	return p, url, nil
}

// startReaders starts the agents and waits until all of them watch.
func (f *fanout) startReaders(ctx context.Context, url string) (*process.Process, string, error) {
	name := f.name + "-readers"
	socket := filepath.Join(f.dir, name+".sock")
	p, err := process.Start(name, f.dir, []string{f.config.Program, "bench", "readers",
		"--endpoint=" + url, "--prefix=" + wire.CachePrefix(wire.Endpoints, f.config.Mesh.Cluster(0).Name),
		"--readers=" + strconv.Itoa(f.config.Agents), "--socket=" + socket, "--run=" + strconv.Itoa(f.run)}, nil)
	if err != nil {
		return nil, "", err
	}
	alive, stop := whileAlive(ctx, p)
	defer stop()
	status, err := askReaders(alive, socket, func(s follower.ReadersStatus) bool { return s.Watching == f.config.Agents })
	if err != nil {
		p.Kill()
		return nil, "", fmt.Errorf("waiting until all agents watch (%d do): %w\n%s", status.Watching, err, p.LogTail())
	}
	return p, socket, nil
}

// askReadersAgain is the time between two questions to the readers: they have a
// histogram to write for each.
const askReadersAgain = 100 * time.Millisecond

// askReaders asks until the answer is right or ctx ends, and gives the last one.
func askReaders(ctx context.Context, socket string, right func(follower.ReadersStatus) bool) (last follower.ReadersStatus, err error) {
	for {
		status, err := follower.AskReaders(ctx, socket)
		if err == nil {
			if last = status; right(status) {
				return last, nil
			}
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-time.After(askReadersAgain):
		}
	}
}

// measure sends events and waits for them. The processes are the etcd, the proxy
// if there is one, and the readers.
func (f *fanout) measure(ctx context.Context, size int, socket string, processes []*process.Process) (figures FanoutFigures, err error) {
	status, err := follower.AskReaders(ctx, socket)
	if err != nil {
		return figures, err
	}
	bytes := status.Bytes
	before, err := cpuOf(processes)
	if err != nil {
		return figures, err
	}
	book := newLedger()
	load := load{mesh: f.config.Mesh, sources: f.sources, rate: f.config.Rate, resource: wire.Endpoints, commit: size, next: stamped(f.run, book)}
	began := time.Now()
	if err := load.send(ctx, f.config.Duration); err != nil {
		return figures, err
	}
	sent := book.tally().sent
	drain, cancel := context.WithTimeoutCause(ctx, f.config.Drain, fmt.Errorf("not within %s", f.config.Drain))
	defer cancel()
	want := sent * f.config.Agents
	status, err = askReaders(drain, socket, func(s follower.ReadersStatus) bool { return s.Delivered >= want })
	if err != nil {
		return figures, fmt.Errorf("waiting for %d events at %d agents: %d of %d were delivered, and %d to the one that has the fewest: %w",
			sent, f.config.Agents, status.Delivered, want, status.Least, err)
	}
	if status.Delivered != want || status.Least != sent || status.Sum != f.config.Agents*sent*(sent+1)/2 {
		return figures, fmt.Errorf("of %d events for %d agents %d were delivered, and %d to the one that has the fewest: what has arrived isn't what was sent",
			sent, f.config.Agents, status.Delivered, status.Least)
	}
	seconds := time.Since(began).Seconds()
	after, err := cpuOf(processes)
	if err != nil {
		return figures, err
	}
	var peaks []int64
	for _, p := range processes {
		memory, err := p.Memory()
		if err != nil {
			return figures, err
		}
		peaks = append(peaks, memory.Peak)
	}
	figures = FanoutFigures{
		Latency: latencyOf(status.Latencies), Commit: latencyOf(status.Commits),
		Seconds: seconds, Sent: sent, Delivered: status.Delivered, Commits: sent / size, Messages: status.Messages,
		Bytes:          status.Bytes - bytes,
		EtcdCPUSeconds: (after[0] - before[0]).Seconds(), EtcdPeakRSSBytes: peaks[0],
		latencies: status.Latencies,
	}
	last := len(processes) - 1
	figures.ReadersCPUSeconds = (after[last] - before[last]).Seconds()
	if last == 2 {
		figures.ProxyCPUSeconds, figures.ProxyPeakRSSBytes = (after[1] - before[1]).Seconds(), peaks[1]
	}
	perEvent := func(v float64) float64 { return v / float64(status.Delivered) }
	figures.EtcdCPUPerEvent = perEvent(figures.EtcdCPUSeconds * 1e6)
	figures.ProxyCPUPerEvent = perEvent(figures.ProxyCPUSeconds * 1e6)
	figures.BytesPerEvent = perEvent(float64(figures.Bytes))
	return figures, nil
}

// cpuOf are the CPU times of processes at one moment.
func cpuOf(processes []*process.Process) (all []time.Duration, err error) {
	for _, p := range processes {
		cpu, err := p.CPU()
		if err != nil {
			return nil, err
		}
		all = append(all, cpu)
	}
	return all, nil
}
