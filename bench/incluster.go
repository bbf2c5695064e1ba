// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/bench/apiserver"
	"github.com/waggle-mesh/waggle/bench/process"
)

// InClusterConfig is what to measure of the ways in which a cluster's state gets
// to its own agents.
type InClusterConfig struct {
	// Config's Mesh has only a seed; Layout and Peers aren't used.
	Config
	// Agents is their number, and that of nodes.
	Agents int
	// Pods is how many pods there are at the start, and all the time about as many.
	Pods int
	// Rate is the number of changes of pods per second, and ServicesRate that of
	// services.
	Rate, ServicesRate float64
	// Duration is how long they are made.
	Duration time.Duration
	// Drain is how long to wait afterwards until all agents have all.
	Drain time.Duration
	// EndpointSlices has CiliumEndpointSlices instead of CiliumEndpoints.
	EndpointSlices bool
	// KubernetesProgram is the program file of the real kube-apiserver; if empty,
	// the one beside Program.
	KubernetesProgram string
}

// The ways in which a cluster's state gets to its agents.
const (
	// Idle has no agents: what the writes alone cost.
	Idle = "idle"
	// CRD is a watch of each agent on each kind of object at the API server.
	CRD = "crd"
)

const (
	// inClusterWarmUp is how long changes are made before those that count: a new API
	// server is slower at first.
	inClusterWarmUp = 3 * time.Second
	// inClusterTail is measured after the last change in every mode, whether anybody
	// waits for it or not: so all have the same time.
	inClusterTail = time.Second
	// agentsOfProcess is how many agents are in one process, so that none has a heap
	// whose collection stops them all for long.
	agentsOfProcess = 100
	// fewestPodsPerRate keeps the writes of one pod apart by seconds: pods are removed
	// in the order in which they came.
	fewestPodsPerRate = 2
)

func (c InClusterConfig) validate() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	switch {
	case c.Agents < 1:
		return errors.New("there must be at least one agent")
	case uint64(c.Agents)+otherFiles > files.Max:
		return fmt.Errorf("%d agents: a process may have only %d files open (ulimit -Hn)", c.Agents, files.Max)
	case c.Rate <= 0 || c.ServicesRate < 0 || c.Duration < time.Second:
		return errors.New("the rate must be positive, that of services not negative, and the duration at least a second")
	case float64(c.Pods) < fewestPodsPerRate*c.Rate:
		return fmt.Errorf("%d pods: at %g changes/s there must be at least %g", c.Pods, c.Rate, fewestPodsPerRate*c.Rate)
	}
	return nil
}

// InCluster measures what it costs to tell a cluster's state to its own agents,
// and how long that takes: with a watch of each agent at the API server, and with
// no agent at all, which is what the writes cost by themselves. Kubernetes is a
// real kube-apiserver, started anew for each of them, with an etcd of its own; the
// same changes are made in the same order. What has arrived at each agent is
// compared with what was written.
func InCluster(ctx context.Context, config InClusterConfig) (*InClusterReport, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	program, err := peerProgram(config.KubernetesProgram, config.Program, apiServerProgram)
	if err != nil {
		return nil, err
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	head, err := b.head("incluster", nil)
	if err != nil {
		return nil, err
	}
	modes := []string{Idle, CRD}
	report := &InClusterReport{
		Head: head, Agents: config.Agents, Pods: config.Pods, Rate: config.Rate, ServicesRate: config.ServicesRate,
		Seconds: config.Duration.Seconds(), EndpointSlices: config.EndpointSlices,
	}
	b.expect(config.Rounds * len(modes))
	for n := range config.Rounds {
		for _, mode := range modes {
			run := inCluster{benchmark: b, config: config, program: program, name: fmt.Sprintf("%s-%d", mode, n+1)}
			run.doing = func(what string) { b.progress("round %d of %d: %s, %s", n+1, config.Rounds, mode, what) }
			figures, err := run.round(ctx, mode)
			if err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", n+1, mode, err)
			}
			report.Rounds = append(report.Rounds, InClusterRound{Mode: mode, InClusterFigures: figures})
			b.stepDone()
		}
	}
	return report, nil
}

// inCluster is one round of one mode.
type inCluster struct {
	*benchmark
	config  InClusterConfig
	program string
	name    string
	doing   func(string)
	world   *world
}

func (r *inCluster) round(ctx context.Context, mode string) (f InClusterFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.config.Timeout+r.config.Duration+r.config.Drain,
		fmt.Errorf("not done within %s beyond the time to measure", r.config.Timeout))
	defer cancel()
	r.doing("starting the API server")
	k, err := r.startAPIServer(ctx, r.program, r.name)
	if err != nil {
		return f, err
	}
	defer k.close()
	ctx, stop := whileAlive(ctx, k.process)
	defer stop()
	r.doing(fmt.Sprintf("filling it with %d pods", r.config.Pods))
	changes := int(r.config.Rate * (inClusterWarmUp + r.config.Duration).Seconds())
	r.world = newWorld(r.config.Pods, r.config.Agents, podChangesWithin(changes), r.config.Mesh.Seed, r.config.EndpointSlices)
	if err := r.world.cluster.mesh.Validate(); err != nil {
		return f, err
	}
	r.world.clients = &k.clients
	if err := r.world.fill(ctx); err != nil {
		return f, err
	}
	if err := k.settle(ctx); err != nil {
		return f, err
	}
	before, err := cpuOf([]*process.Process{k.process, k.etcd.Process})
	if err != nil {
		return f, err
	}
	agents := &agents{}
	if mode != Idle {
		r.doing(fmt.Sprintf("starting %d agents", r.config.Agents))
		began := time.Now()
		if agents, err = r.startAgents(ctx, "--k8s-kubeconfig-path="+k.kubeconfig); err != nil {
			return f, err
		}
		defer agents.close()
		f.SyncSeconds = time.Since(began).Seconds()
		after, err := cpuOf([]*process.Process{k.process, k.etcd.Process})
		if err != nil {
			return f, err
		}
		f.SyncCPUSeconds = (after[0] - before[0] + after[1] - before[1]).Seconds()
	}
	r.doing("warming up")
	if err := r.change(ctx, inClusterWarmUp); err != nil {
		return f, err
	}
	if err := agents.await(ctx, r.world.book); err != nil {
		return f, err
	}
	if err := k.settle(ctx); err != nil {
		return f, err
	}
	r.doing(fmt.Sprintf("%g changes/s", r.config.Rate+r.config.ServicesRate))
	return f, r.measure(ctx, &f, k, agents)
}

// measure makes the changes that count, and waits for them.
func (r *inCluster) measure(ctx context.Context, f *InClusterFigures, k *apiServer, agents *agents) error {
	r.world.book.begin()
	if err := agents.record(ctx); err != nil {
		return err
	}
	metrics, err := k.clients.Metrics(ctx)
	if err != nil {
		return err
	}
	machine, err := readProcessors()
	if err != nil {
		return err
	}
	servers := []*process.Process{k.process, k.etcd.Process}
	all := slices.Concat(servers, agents.processes)
	sampler := startSampling(servers...)
	defer sampler.stop()
	before, err := cpuOf(all)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := r.change(ctx, r.config.Duration); err != nil {
		return err
	}
	ended := time.Now()
	drain, cancel := context.WithTimeoutCause(ctx, r.config.Drain, fmt.Errorf("not within %s", r.config.Drain))
	defer cancel()
	if err := agents.await(drain, r.world.book); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(ended.Add(inClusterTail))):
	}
	after, err := cpuOf(all)
	if err != nil {
		return err
	}
	f.Seconds = time.Since(began).Seconds()
	busy, err := readProcessors()
	if err != nil {
		return err
	}
	f.Busy = busy.since(machine)
	samples := sampler.stop()
	f.samples = map[string][]sample{apiServerPart: samples[0], apiServerEtcdPart: samples[1]}
	used := func(i int) float64 { return (after[i] - before[i]).Seconds() }
	f.APIServerCPU, f.APIServerEtcdCPU = used(0), used(1)
	f.TotalCPU = f.APIServerCPU + f.APIServerEtcdCPU
	for i := range agents.processes {
		f.AgentsCPUSeconds += used(len(servers) + i)
	}
	f.Metrics.ResidentBytes, f.PeakRSS = map[string]int64{}, map[string]int64{}
	for i, name := range []string{apiServerPart, apiServerEtcdPart} {
		memory, err := servers[i].Memory()
		if err != nil {
			return err
		}
		f.Metrics.ResidentBytes[name], f.PeakRSS[name] = memory.Resident, memory.Peak
	}
	f.APIServerRSS = f.Metrics.ResidentBytes[apiServerPart]
	now, err := k.clients.Metrics(ctx)
	if err != nil {
		return err
	}
	f.setMetrics(now.Since(metrics))
	return r.deliveries(ctx, f, agents, ended)
}

// deliveries asks the agents when they had each write.
func (r *inCluster) deliveries(ctx context.Context, f *InClusterFigures, agents *agents, ended time.Time) error {
	d, err := r.world.book.deliveries()
	if err != nil {
		return err
	}
	f.Writes = len(d.writes)
	f.Late, f.Request = latencyOf(r.world.book.late.Export()), latencyOf(r.world.book.request.Export())
	if len(agents.processes) == 0 {
		return nil
	}
	if err := agents.arrivals(ctx, d.add); err != nil {
		return err
	}
	f.latencies = d.all.Export()
	f.Latency, f.Beyond = latencyOf(f.latencies), latencyOf(d.beyond.Export())
	f.Delivered, f.Overtaken = d.agents*len(d.writes), d.overtaken
	f.DrainSeconds = max(0, d.last.Sub(ended).Seconds())
	return nil
}

// change makes changes of pods and services for that long, and returns once the
// API server has all.
func (r *inCluster) change(ctx context.Context, duration time.Duration) error {
	writes, ctx := errgroup.WithContext(ctx)
	var one sync.Mutex // that changes the world
	keepUp := func(rate float64, give func() write) func() error {
		return func() error {
			return everyTick(ctx, tickAt(rate), rate, duration, func(_, count int, due time.Time) error {
				one.Lock()
				defer one.Unlock()
				for range count {
					put := give()
					writes.Go(func() error {
						r.world.book.behind(due)
						return put(ctx)
					})
				}
				return nil
			})
		}
	}
	writes.Go(keepUp(r.config.Rate, r.world.changePod))
	if r.config.ServicesRate > 0 {
		writes.Go(keepUp(r.config.ServicesRate, r.world.changeService))
	}
	return writes.Wait()
}

// setMetrics sets what the API server says of itself.
func (f *InClusterFigures) setMetrics(m apiserver.Metrics) {
	f.WatchConnections = m.WatchCount()
	f.WatchEventsPerMin = m.WatchEventCount() / f.Seconds * time.Minute.Seconds()
	f.Metrics.CPUSeconds = map[string]float64{apiServerPart: f.APIServerCPU, apiServerEtcdPart: f.APIServerEtcdCPU}
	f.Metrics.Requests = Quantiles{P50: m.RequestSeconds(0.5), P99: m.RequestSeconds(0.99)}
	f.Metrics.Watches, f.Metrics.WatchEventsPerMin = m.Watches, map[string]float64{}
	for resource, n := range m.WatchEvents {
		f.Metrics.WatchEventsPerMin[resource] = n / f.Seconds * time.Minute.Seconds()
	}
}
