// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ExportConfig is what to measure of an exporter.
type ExportConfig struct {
	// Config's Mesh is that of one cluster; Layout isn't used.
	Config
	// Modes are the kinds of objects that endpoints are read from, of ExportModes.
	Modes []string
	// Rate is the number of endpoints that are added per second.
	Rate float64
	// Duration is how long they are.
	Duration time.Duration
	// Drain is how long to wait afterwards for what hasn't arrived.
	Drain time.Duration
	// KubernetesProgram is the program file of the real kube-apiserver; if empty,
	// the one beside Program.
	KubernetesProgram string
}

// events is the number of endpoints that are added in a round.
func (c ExportConfig) events() int {
	ticks := int(c.Duration / tickAt(c.Rate))
	return int(c.Rate*(time.Duration(ticks)*tickAt(c.Rate)).Seconds() + 0.5)
}

func (c ExportConfig) validate() error {
	switch {
	case c.Mesh.Clusters != 1 || c.Mesh.Services != 0:
		return errors.New("an exporter has one cluster, and no services here")
	case c.Rate <= 0 || c.Duration < time.Second:
		return errors.New("the rate must be positive, and the duration at least a second")
	case len(c.Modes) == 0:
		return fmt.Errorf("there must be a mode: %s", strings.Join(ExportModes, ", "))
	}
	for i, mode := range c.Modes {
		if !slices.Contains(ExportModes, mode) || slices.Contains(c.Modes[:i], mode) {
			return fmt.Errorf("mode %q: must be one or several of %s", mode, strings.Join(ExportModes, ", "))
		}
	}
	return c.Mesh.Validate()
}

// ExportPeers are the names of the peers of an exporter.
var ExportPeers = []string{Upstream, UpstreamShipped}

// exportLimits are the values of upstream's --kvstore-opt, by peer. As shipped
// they are those of the chart of v1.19.3 for its container "apiserver"
// (install/kubernetes/cilium/templates/clustermesh-apiserver/deployment.yaml);
// etcd.maxInflight is 20, the client's own default.
var exportLimits = map[string][]string{
	Upstream:        {"etcd.qps=1000000", "etcd.bootstrapQps=1000000", "etcd.maxInflight=100"},
	UpstreamShipped: {"etcd.qps=20", "etcd.bootstrapQps=10000"},
}

// exporter is a subject that reads endpoints of one kind.
func exporter(name, program string, k *kubernetes, mode string) subject {
	s := subject{name: name, allowed: "as shipped", canaries: []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints, wire.Services}}
	if name != Waggle {
		s.allowed = strings.Join(exportLimits[name], " ")
	}
	s.argv = func(env environment) []string {
		argv := []string{program, "clustermesh", "--health-port=0",
			"--cluster-name=" + k.cluster.Name, fmt.Sprintf("--cluster-id=%d", k.cluster.ID),
			fmt.Sprintf("--max-connected-clusters=%d", env.mesh.MaxConnectedClusters()),
			"--kvstore-opt=etcd.config=" + env.localConfig, "--k8s-kubeconfig-path=" + k.kubeconfig,
		}
		if mode == CES {
			argv = append(argv, "--enable-cilium-endpoint-slice")
		}
		if name != Waggle {
			argv = append(argv, "--enable-gops=false", "--shell-sock-path="+env.socket)
		}
		for _, limit := range exportLimits[name] {
			argv = append(argv, "--kvstore-opt="+limit)
		}
		return argv
	}
	return s
}

// Export measures how a cluster's state gets from Kubernetes into its etcd: from
// the start of an exporter until all is there, and then how long endpoints take
// that are added at a steady rate. Kubernetes is a real kube-apiserver, started
// once, with an etcd of its own; exporter and its etcd are started anew for each
// round, and what the round has added is removed. A first round of ours in each
// mode doesn't count. Peers do the same work in
// turns. What has arrived is compared with what was to arrive, byte for byte.
func Export(ctx context.Context, config ExportConfig) (*ExportReport, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	program, err := peerProgram(config.KubernetesProgram, config.Program, apiServerProgram)
	if err != nil {
		return nil, err
	}
	programs := map[string]string{Waggle: config.Program}
	names := []string{Waggle}
	for i, name := range config.Peers {
		if !slices.Contains(ExportPeers, name) || slices.Contains(config.Peers[:i], name) {
			return nil, fmt.Errorf("peer %q: must be one or several of %s", name, strings.Join(ExportPeers, ", "))
		}
		if programs[name], err = peerProgram(config.PeerProgram, config.Program, upstreamProgram); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	head, err := b.head("export", nil)
	if err != nil {
		return nil, err
	}
	room := config.Mesh
	room.Endpoints += config.events()
	if err := room.Validate(); err != nil {
		return nil, err
	}
	began := time.Now()
	k, err := b.startKubernetes(ctx, program, room.Cluster(0), config.Mesh.Endpoints)
	if err != nil {
		return nil, err
	}
	defer k.close()
	head.Sources = SourceInfo{Layout: LayoutState, Etcds: 1, Keys: config.Mesh.Keys(), Fill: time.Since(began).Seconds()}
	report := &ExportReport{Head: head, Rate: config.Rate, Seconds: config.Duration.Seconds()}
	run := 0
	round := func(mode, name string, n int) (ExportFigures, error) {
		run++
		s := exporter(name, programs[name], k, mode)
		report.Allowed[name] = s.allowed
		e := export{benchmark: b, config: config, kubernetes: k, mode: mode, run: run, name: fmt.Sprintf("%s-%s-%d", mode, name, n)}
		figures, err := e.round(ctx, s)
		if err != nil {
			return figures, fmt.Errorf("round %d, %s of %s: %w", n, mode, name, err)
		}
		return figures, nil
	}
	b.expect(len(config.Modes) + config.Rounds*len(config.Modes)*len(names))
	for _, mode := range config.Modes {
		// The first round on a new API server has longer latencies, whoever has it.
		b.progress("%s, a round that doesn't count", mode)
		if _, err := round(mode, Waggle, 0); err != nil {
			return nil, err
		}
		b.stepDone()
	}
	for n := range config.Rounds {
		for _, mode := range config.Modes {
			for _, name := range names {
				b.progress("round %d of %d: %s, %s", n+1, config.Rounds, mode, name)
				figures, err := round(mode, name, n+1)
				if err != nil {
					return nil, err
				}
				report.Rounds = append(report.Rounds, ExportRound{Mode: mode, Subject: name, ExportFigures: figures})
				b.stepDone()
			}
		}
	}
	return report, nil
}

// export is one round of one subject.
type export struct {
	*benchmark
	config     ExportConfig
	kubernetes *kubernetes
	mode       string
	run        int
	name       string
	// added are the endpoints of this round.
	added []wire.Endpoint
}

func (e *export) round(ctx context.Context, s subject) (f ExportFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.config.Timeout+e.config.Duration+e.config.Drain,
		fmt.Errorf("not done within %s beyond the time to measure", e.config.Timeout))
	defer cancel()
	k := e.kubernetes
	if err := k.settle(ctx); err != nil {
		return f, err
	}
	local, env, err := e.startLocal(ctx, e.name, &sources{})
	if err != nil {
		return f, err
	}
	defer local.close()
	var canaries []string
	for _, r := range s.canaries {
		canaries = append(canaries, wire.CanaryKey(r, k.cluster.Name, false))
	}
	arrival := watchKeys(ctx, local.client, wire.StateRoot, e.config.Mesh.Keys(), canaries)
	defer arrival.stop()
	idle, err := local.CPU()
	if err != nil {
		return f, err
	}
	p, err := process.Start(e.name, e.dir, s.argv(env), nil)
	if err != nil {
		return f, err
	}
	defer p.Kill()
	sampler := startSampling(p, local.Process)
	defer sampler.stop()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	if f.Keys, err = arrival.wait(alive); err != nil {
		return f, fmt.Errorf("waiting for it to be ready: %w\n%s", err, p.LogTail())
	}
	f.ReadySeconds = time.Since(p.Began()).Seconds()
	processes := []*process.Process{p, local.Process, k.process, k.etcd.Process}
	ready, err := cpuOf(processes)
	if err != nil {
		return f, err
	}
	f.ReadyCPUSeconds, f.ReadyEtcdCPUSeconds = ready[0].Seconds(), (ready[1] - idle).Seconds()
	memory, err := p.Memory()
	if err != nil {
		return f, err
	}
	f.ReadyPeakRSSBytes = memory.Peak
	if err := e.measure(alive, &f, local, processes); err != nil {
		return f, fmt.Errorf("%w\n%s", err, p.LogTail())
	}
	if memory, err = p.Memory(); err != nil {
		return f, err
	}
	f.PeakRSSBytes = memory.Peak
	samples := sampler.stop()
	f.samples, f.etcdSamples = samples[0], samples[1]
	if f.Drained {
		if err := e.verify(ctx, local); err != nil {
			return f, err
		}
	}
	if err := p.Stop(); err != nil {
		return f, err
	}
	return f, k.reset(ctx, e.mode, e.added)
}

// measure adds endpoints and waits for them. The processes are the subject, its
// etcd, the API server and that one's etcd.
func (e *export) measure(ctx context.Context, f *ExportFigures, local *etcdProcess, processes []*process.Process) error {
	book := newLedger()
	watch, err := watchEndpoints(ctx, local, wire.StatePrefix(wire.Endpoints, e.kubernetes.cluster.Name), book, e.run)
	if err != nil {
		return err
	}
	defer watch.stop()
	before, err := cpuOf(processes)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := e.send(ctx, book, f); err != nil {
		return err
	}
	end := book.tally()
	f.Seconds = time.Since(began).Seconds()
	after, err := cpuOf(processes)
	if err != nil {
		return err
	}
	used := func(i int) float64 { return (after[i] - before[i]).Seconds() }
	f.CPUSeconds, f.EtcdCPUSeconds, f.KubernetesCPUSeconds = used(0), used(1), used(2)+used(3)
	f.QueueEnd, f.QueueMax = end.sent-end.arrived, end.longest
	drain, cancel := context.WithTimeout(ctx, e.config.Drain)
	defer cancel()
	f.Drained = waitComplete(drain, book)
	all := book.tally()
	f.Sent, f.Delivered = all.sent, all.arrived
	f.Latency, f.Accepted, f.Own = latencyOf(all.latencies), latencyOf(all.accepted), latencyOf(all.beyond)
	f.latencies = all.latencies
	f.Commits, f.CommitEvents = watch.counts()
	return errors.Join(watch.err(), context.Cause(ctx))
}

// send adds endpoints, until the API server has accepted all, and counts its
// writes.
func (e *export) send(ctx context.Context, book *ledger, f *ExportFigures) error {
	var (
		made   atomic.Int64
		writes errgroup.Group
		k      = e.kubernetes
	)
	writes.SetLimit(writesAtOnce)
	err := everyTick(ctx, tickAt(e.config.Rate), e.config.Rate, e.config.Duration, func(_, due int, at time.Time) error {
		for range due {
			i := k.initial + len(e.added)
			endpoint := k.cluster.endpointObject(i)
			stamp := follower.Stamp{Run: e.run, Number: book.send(objectOf{k.cluster.index, i}, at), Due: at}
			endpoint.Pod = stamp.Pod()
			e.added = append(e.added, endpoint)
			writes.Go(func() error {
				wrote, err := k.write(ctx, e.mode, i, endpoint)
				if err != nil {
					return err
				}
				book.accept(stamp.Number, time.Now())
				if wrote {
					made.Add(1)
				}
				return nil
			})
		}
		return nil
	})
	err = errors.Join(err, writes.Wait())
	f.Writes = int(made.Load())
	return err
}

// verify compares what is in the etcd with what is to be there.
func (e *export) verify(ctx context.Context, local *etcdProcess) error {
	want, err := e.kubernetes.expected(e.added)
	if err != nil {
		return err
	}
	prefixes := map[string]struct{}{}
	for prefix := range want {
		prefixes[prefix] = struct{}{}
	}
	got, err := contentBelow(ctx, local.client, e.benchmark.config.Log, wire.StateRoot, prefixes)
	if err != nil {
		return err
	}
	if err := compare(want, got); err != nil {
		return fmt.Errorf("what has arrived isn't what was sent: %w", err)
	}
	return nil
}
