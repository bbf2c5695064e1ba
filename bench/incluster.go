// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/bench/process"
)

// InClusterConfig is what to measure of the ways in which a cluster's state gets
// to its own agents.
type InClusterConfig struct {
	// Config's Mesh has only a seed; Layout and Peers aren't used.
	Config
	// Agents is their number, and that of nodes.
	Agents int
	// Bare is how many of them only open the watches that an agent has: what serves
	// them has the same work, and the machine less.
	Bare int
	// Pods is how many pods there are at the start, and all the time about as many.
	Pods int
	// Rate is the number of changes of pods per second, and ServicesRate that of
	// services.
	Rate, ServicesRate float64
	// Duration is how long they are made.
	Duration time.Duration
	// Drain is how long to wait afterwards until all agents have all.
	Drain time.Duration
	// Wait is the wait between commits to the cache's etcd that the modes are compared
	// with, and Waits are others, which the cache is measured with as well.
	Wait  time.Duration
	Waits []time.Duration
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
	// Cache is an in-cluster cache, whose etcd the agents watch.
	Cache = "cache"
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
	case c.Bare < 0 || c.Bare >= c.Agents:
		return fmt.Errorf("%d of %d agents bare: at least one must have tables", c.Bare, c.Agents)
	case uint64(c.Agents)+otherFiles > files.Max:
		return fmt.Errorf("%d agents: a process may have only %d files open (ulimit -Hn)", c.Agents, files.Max)
	case c.Rate <= 0 || c.ServicesRate < 0 || c.Duration < time.Second:
		return errors.New("the rate must be positive, that of services not negative, and the duration at least a second")
	case float64(c.Pods) < fewestPodsPerRate*c.Rate:
		return fmt.Errorf("%d pods: at %g changes/s there must be at least %g", c.Pods, c.Rate, fewestPodsPerRate*c.Rate)
	}
	for i, wait := range c.Waits {
		if wait < 0 || c.Wait < 0 {
			return errors.New("a wait between commits can't be negative")
		}
		if wait == c.Wait || slices.Contains(c.Waits[:i], wait) {
			return fmt.Errorf("a wait of %s between commits: named twice", wait)
		}
	}
	return nil
}

// waits are all waits to measure the cache with, that of the comparison first.
func (c InClusterConfig) waits() []time.Duration {
	return append([]time.Duration{c.Wait}, c.Waits...)
}

// InCluster measures what it costs to tell a cluster's state to its own agents,
// and how long that takes: with a watch of each agent at the API server, through an
// in-cluster cache, and with no agent at all, which is what the writes cost by
// themselves. Kubernetes is a real kube-apiserver, started anew for each of them,
// with an etcd of its own; the same changes are made in the same order. What has
// arrived at each agent is compared with what was written.
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
	report := &InClusterReport{
		Head: head, Agents: config.Agents, Bare: config.Bare, Pods: config.Pods, Rate: config.Rate, ServicesRate: config.ServicesRate,
		Seconds: config.Duration.Seconds(), EndpointSlices: config.EndpointSlices,
	}
	b.expect(config.Rounds * (len(inClusterModes) - 1 + len(config.waits())))
	for n := range config.Rounds {
		for _, mode := range inClusterModes {
			run := inCluster{benchmark: b, config: config, program: program, mode: mode, name: fmt.Sprintf("%s-%d", mode, n+1), report: report}
			run.doing = func(what string) { b.progress("round %d of %d: %s, %s", n+1, config.Rounds, mode, what) }
			if err := run.round(ctx); err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", n+1, mode, err)
			}
		}
	}
	return report, nil
}

// inClusterModes are all modes, in the order in which they are measured.
var inClusterModes = []string{Idle, CRD, Cache}

// inCluster is one round of one mode.
type inCluster struct {
	*benchmark
	config     InClusterConfig
	program    string
	mode, name string
	doing      func(string)
	report     *InClusterReport
	kubernetes *apiServer
	world      *world
	// carried is the number of measurements that were begun.
	carried int
}

// carrier is a process whose cost is compared.
type carrier struct {
	name string
	*process.Process
}

// round starts an API server and measures on it: once, or with each of the waits.
func (r *inCluster) round(ctx context.Context) (err error) {
	waits := []time.Duration{0}
	if r.mode == Cache {
		waits = r.config.waits()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.config.Timeout+time.Duration(len(waits))*(r.config.Duration+r.config.Drain),
		fmt.Errorf("not done within %s beyond the time to measure", r.config.Timeout))
	defer cancel()
	r.doing("starting the API server")
	if r.kubernetes, err = r.startAPIServer(ctx, r.program, r.name); err != nil {
		return err
	}
	defer r.kubernetes.close()
	ctx, stop := whileAlive(ctx, r.kubernetes.process)
	defer stop()
	r.doing(fmt.Sprintf("filling it with %d pods", r.config.Pods))
	changes := int(r.config.Rate*(inClusterWarmUp+r.config.Duration).Seconds()) * len(waits)
	r.world = newWorld(r.config.Pods, r.config.Agents, podChangesWithin(changes), r.config.Mesh.Seed, r.config.EndpointSlices)
	if err := r.world.cluster.mesh.Validate(); err != nil {
		return err
	}
	r.world.clients = &r.kubernetes.clients
	if err := r.world.fill(ctx); err != nil {
		return err
	}
	for _, wait := range waits {
		figures, err := r.carry(ctx, wait)
		if err != nil {
			return err
		}
		r.report.Rounds = append(r.report.Rounds, InClusterRound{Mode: r.mode, Wait: wait, InClusterFigures: figures})
		r.stepDone()
	}
	return nil
}

// carry starts what carries the state to the agents, and them, and measures both.
func (r *inCluster) carry(ctx context.Context, wait time.Duration) (f InClusterFigures, err error) {
	k := r.kubernetes
	r.carried++
	if err := k.settle(ctx); err != nil {
		return f, err
	}
	parts := []carrier{{apiServerPart, k.process}, {apiServerEtcdPart, k.etcd.Process}}
	before, err := cpuOfParts(parts)
	if err != nil {
		return f, err
	}
	began := time.Now()
	source := []string{"--k8s-kubeconfig-path=" + k.kubeconfig}
	if r.mode == Cache {
		r.doing(fmt.Sprintf("starting the cache, with %s between commits", wait))
		cache, local, err := r.startCache(ctx, wait)
		if err != nil {
			return f, err
		}
		defer local.close()
		defer cache.Kill()
		alive, stop := whileAlive(ctx, cache)
		defer stop()
		ctx = alive
		parts = append(parts, carrier{cachePart, cache}, carrier{cacheEtcdPart, local.Process})
		source = []string{"--datastore=etcd", "--kvstore-opt=etcd.address=" + local.url}
	}
	agents := &agents{}
	if r.mode != Idle {
		r.doing(fmt.Sprintf("starting %d agents", r.config.Agents))
		if agents, err = r.startAgents(ctx, source...); err != nil {
			return f, err
		}
		defer agents.close()
		for _, p := range agents.processes {
			alive, stop := whileAlive(ctx, p)
			defer stop()
			ctx = alive
		}
		f.SyncSeconds = time.Since(began).Seconds()
		after, err := cpuOfParts(parts)
		if err != nil {
			return f, err
		}
		f.SyncCPUSeconds = sum(after) - sum(before)
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
	return f, r.measure(ctx, &f, parts, agents)
}

// part is the name of the files of a process.
func (r *inCluster) part(of string) string { return fmt.Sprintf("%s-%d-%s", r.name, r.carried, of) }

// startCache starts a cache and its etcd, so that they can be told apart.
func (r *inCluster) startCache(ctx context.Context, wait time.Duration) (*process.Process, *etcdProcess, error) {
	name := r.part("cache")
	local, err := r.startEtcd(ctx, name+"-etcd", r.network.url())
	if err != nil {
		return nil, nil, err
	}
	cache, err := process.Start(name, r.dir, []string{r.benchmark.config.Program, "incluster-cache", "--health-port=0",
		"--k8s-kubeconfig-path=" + r.kubernetes.kubeconfig, "--kvstore-opt=etcd.address=" + local.url,
		"--incluster-cache-commit-delay=" + wait.String(),
		"--enable-cilium-endpoint-slice=" + strconv.FormatBool(r.config.EndpointSlices)}, nil)
	if err != nil {
		local.close()
		return nil, nil, err
	}
	return cache, local, nil
}

// cpuOfParts are the seconds of processor time that each has used so far.
func cpuOfParts(parts []carrier) (map[string]float64, error) {
	out := map[string]float64{}
	for _, p := range parts {
		cpu, err := p.CPU()
		if err != nil {
			return nil, err
		}
		out[p.name] = cpu.Seconds()
	}
	return out, nil
}

func sum(values map[string]float64) (out float64) {
	for _, v := range values {
		out += v
	}
	return out
}
