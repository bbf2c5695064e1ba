// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ScaleConfig is what to measure of a large mesh.
type ScaleConfig struct {
	// Config's Mesh are the remote clusters; see ScaleMesh. Rounds, Peers and
	// Layout mean nothing here: it is one round of waggle, and the sources are a
	// few etcds, each cluster below a prefix of its own.
	Config
	// Growth are the numbers of clusters, with the consumer's own, at which to
	// measure the bootstrap before it is measured with all of them.
	Growth []int
	// Idle is how long to measure without any change.
	Idle time.Duration
	// NodeRate are the changes of nodes per second, over all clusters, that go with
	// each of EndpointRates, the changes of endpoints per second. Each is kept up
	// for Duration.
	NodeRate      float64
	EndpointRates []float64
	Duration      time.Duration
	// Drain is how long to wait afterwards for what hasn't arrived.
	Drain time.Duration
}

// ScaleMesh are the remote clusters of a mesh of so many clusters, with the
// consumer's own, that have so many nodes and endpoints together: each has as many
// as the others, and where that doesn't come out even, there is one more in each.
func ScaleMesh(clusters, nodes, endpoints, identities int, seed uint64) (Mesh, error) {
	if clusters < 2 {
		return Mesh{}, fmt.Errorf("%d clusters: there must be two, since one is the consumer's", clusters)
	}
	remote := clusters - 1
	share := func(n int) int { return (n + remote - 1) / remote }
	m := Mesh{Clusters: remote, Nodes: share(nodes), Endpoints: share(endpoints), Identities: identities, Seed: seed}
	return m, m.Validate()
}

func (c ScaleConfig) validate() error {
	errs := []error{c.Mesh.Validate(), validateChanges(c.Mesh)}
	if c.Duration < time.Second || c.Idle < time.Second {
		errs = append(errs, errors.New("the durations, with changes and without, must be at least a second"))
	}
	for _, rate := range c.EndpointRates {
		errs = append(errs, c.load(wire.Endpoints, rate).validate())
	}
	if c.NodeRate != 0 {
		errs = append(errs, c.load(wire.Nodes, c.NodeRate).validate())
	}
	for _, clusters := range c.Growth {
		if clusters < 2 || clusters > c.Mesh.Clusters+1 {
			errs = append(errs, fmt.Errorf("growth over %d clusters: must be between 2 and %d", clusters, c.Mesh.Clusters+1))
		}
	}
	return errors.Join(errs...)
}

func (c ScaleConfig) load(r wire.Resource, rate float64) *load {
	return &load{mesh: c.Mesh, resource: r, rate: rate}
}

// Scale measures a mesh as large as one machine can hold of it: all its remote
// clusters, whose state a few etcds have, and the consumer's part of the mesh, its
// KVStoreMesh, etcd and one agent with the kernel's map, each a process of its own
// and as anybody runs it. Without the right to use BPF the error is
// ipcache.ErrBPFNotPermitted.
//
// It has the KVStoreMesh fill the empty etcd, then starts the agent, and when that
// has all in its map, leaves the mesh alone for a while, and then changes nodes and
// endpoints at each of the rates. How long a change takes until it is in the map is
// seen from outside (see mapchange.go). At the end, the etcd must have what the
// sources have, and the map what follows from it: where something was lost there
// is an error and no report. Before all that, it measures the bootstrap with
// the numbers of clusters that Growth has, each from empty and of the same sources.
func Scale(ctx context.Context, config ScaleConfig) (*ScaleReport, error) {
	config.Layout = LayoutCache
	if err := config.validate(); err != nil {
		return nil, err
	}
	watch, err := newMapWatch(config.Log)
	if err != nil {
		return nil, err
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	capacity := mapCapacity(config.Mesh)
	head, err := b.head("scale", []subject{{name: Waggle,
		allowed: fmt.Sprintf("as shipped, --max-connected-clusters=%d --bpf-ipcache-map-max=%d", config.Mesh.MaxConnectedClusters(), capacity)}})
	if err != nil {
		return nil, err
	}
	sources, err := b.startSources(ctx)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	head.Sources = sources.info
	report := &ScaleReport{Head: head}
	sizes := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(config.Growth), config.Mesh.Clusters+1))))
	b.expect(len(sizes))
	for _, clusters := range sizes {
		run := &scaleRun{
			benchmark: b, accounts: accounts{sources: sources}, config: config, watch: watch, capacity: capacity,
			mesh: config.Mesh.first(clusters - 1), name: fmt.Sprintf("scale-%03d", clusters),
		}
		run.figures.Clusters = clusters
		if err := run.measure(ctx, clusters == config.Mesh.Clusters+1); err != nil {
			return nil, fmt.Errorf("with %d clusters: %w", clusters, err)
		}
		report.Sizes = append(report.Sizes, run.figures)
		b.stepDone()
	}
	return report, nil
}

// mapCapacity is the size of a map that holds all of a mesh: its endpoints, and ten
// entries of each node (see ipcache.DefaultConfig), rounded up to a power of two.
func mapCapacity(mesh Mesh) int {
	return 1 << bits.Len(uint(mesh.Clusters*(mesh.Endpoints+10*mesh.Nodes)))
}

// measure measures one size: its bootstrap, and if it is the whole mesh, what
// comes after that.
func (r *scaleRun) measure(ctx context.Context, whole bool) (err error) {
	defer func() { err = errors.Join(err, r.watch.remove()) }()
	defer r.stopSampling()
	local, env, err := r.startLocal(ctx, r.name, r.sources)
	if err != nil {
		return err
	}
	defer local.close()
	defer beat(ctx, r.benchmark.config.Log, local)()
	r.add(partEtcd, local.Process)
	env.clusterMeshConfig = r.file("clustermesh")
	if err := writeConfigs(env.clusterMeshConfig, r.mesh, func(i int) string { return r.sources.of(i).url }); err != nil {
		return err
	}
	replica, err := r.replicate(ctx, local, env)
	if err != nil {
		return err
	}
	defer replica.Kill()
	ctx, stop := whileAlive(ctx, replica)
	defer stop()
	agent, err := r.startAgent(ctx, local)
	if err != nil {
		return err
	}
	defer agent.Kill()
	ctx, stopAgent := whileAlive(ctx, agent)
	defer stopAgent()
	s := newChanges(r.mesh)
	if whole {
		if err := r.steady(ctx, s); err != nil {
			return err
		}
	}
	if err := r.verify(ctx, local, s); err != nil {
		return err
	}
	r.figures.samples, r.figures.Phases = r.keepSamples(), r.phases
	stopAgent()
	stop()
	return errors.Join(agent.Stop(), replica.Stop())
}

// replicate has KVStoreMesh fill the local etcd.
func (r *scaleRun) replicate(ctx context.Context, local *etcdProcess, env environment) (p *process.Process, err error) {
	r.progress("%d clusters: KVStoreMesh replicates %d keys", r.figures.Clusters, r.mesh.Keys())
	ctx, cancel := r.withTimeout(ctx)
	defer cancel()
	s := waggle(r.benchmark.config.Program)
	arrival := watchArrival(ctx, local.client, r.mesh, s.canaries)
	defer arrival.stop()
	_, err = r.phase(phaseReplicate, func() error {
		if p, err = process.Start(r.name+"-kvstoremesh", r.dir, s.argv(env), nil); err != nil {
			return err
		}
		r.add(partKVStoreMesh, p)
		alive, stop := whileAlive(ctx, p)
		defer stop()
		if r.figures.Keys, err = arrival.wait(alive); err != nil {
			return fmt.Errorf("waiting for KVStoreMesh: %w\n%s", err, p.LogTail())
		}
		r.figures.ReadySeconds = time.Since(p.Began()).Seconds()
		return nil
	})
	if err != nil && p != nil {
		p.Kill()
	}
	return p, err
}

// startAgent starts an agent on the local etcd and waits until its map has everything.
func (r *scaleRun) startAgent(ctx context.Context, local *etcdProcess) (p *process.Process, err error) {
	r.progress("%d clusters: an agent takes in %d keys", r.figures.Clusters, r.mesh.Keys())
	ctx, cancel := r.withTimeout(ctx)
	defer cancel()
	configs := r.file("agent-clustermesh")
	if err := writeConfigs(configs, r.mesh, func(int) string { return local.url }); err != nil {
		return nil, err
	}
	argv := r.agent(r.watch, configs, fmt.Sprintf("--bpf-ipcache-map-max=%d", r.capacity))
	_, err = r.phase(phaseAgent, func() error {
		if p, err = process.Start(r.name+"-agent", r.dir, argv, nil); err != nil {
			return err
		}
		r.add(partAgent, p)
		alive, stop := whileAlive(ctx, p)
		defer stop()
		all, err := r.watch.wait(alive, p, r.mesh)
		if err != nil {
			return fmt.Errorf("waiting for the agent's map: %w\n%s", err, p.LogTail())
		}
		f := &r.figures
		f.AgentReadySeconds, f.AgentReadyCPUSeconds = all.at.Sub(p.Began()).Seconds(), all.cpu.Seconds()
		f.MapEntries, f.MapCapacity = all.entries, r.capacity
		f.MapBytes, err = r.watch.bytes(ctx)
		return err
	})
	if err != nil && p != nil {
		p.Kill()
	}
	return p, err
}

func (r *scaleRun) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.benchmark.config.Timeout, fmt.Errorf("not ready within %s", r.benchmark.config.Timeout))
}

// steady measures the mesh while nothing changes, and while nodes and endpoints do.
func (r *scaleRun) steady(ctx context.Context, s *changes) (err error) {
	r.progress("no change for %s", r.config.Idle)
	if _, err := r.phase(phaseIdle, func() error { return pause(ctx, r.config.Idle) }); err != nil {
		return err
	}
	target, err := r.watch.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	watch := watchChanges(target)
	defer func() { err = errors.Join(err, watch.stop()) }()
	for _, rate := range r.config.EndpointRates {
		r.progress("%g endpoints/s and %g nodes/s for %s", rate, r.config.NodeRate, r.config.Duration)
		if err := r.churn(ctx, s, watch, rate); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// churn changes nodes and endpoints, and waits for the changes in the agent's map.
func (r *scaleRun) churn(ctx context.Context, s *changes, watch *mapChanges, rate float64) error {
	pods, nodes := newLedger(), newLedger()
	podLoad, nodeLoad := r.config.load(wire.Endpoints, rate), r.config.load(wire.Nodes, r.config.NodeRate)
	podLoad.sources, podLoad.next = r.sources, s.nextPod(pods, watch)
	nodeLoad.sources, nodeLoad.next = r.sources, s.nextNode(nodes, watch)
	var podsSent, nodesSent tally
	phase, err := r.phase(fmt.Sprintf(phaseChurn, rate), func() error {
		sending, ctx := errgroup.WithContext(ctx)
		sending.Go(func() error { return podLoad.send(ctx, r.config.Duration) })
		if r.config.NodeRate > 0 {
			sending.Go(func() error { return nodeLoad.send(ctx, r.config.Duration) })
		}
		err := sending.Wait()
		podsSent, nodesSent = pods.tally(), nodes.tally()
		return err
	})
	if err != nil {
		return err
	}
	drain, cancel := context.WithTimeout(ctx, r.config.Drain)
	defer cancel()
	if !waitComplete(drain, pods) || !waitComplete(drain, nodes) {
		return fmt.Errorf("at %g endpoints/s and %g nodes/s, %d of %d changes weren't in the agent's map %s after the last one: %s", rate, r.config.NodeRate,
			pods.queueNow()+nodes.queueNow(), podsSent.sent+nodesSent.sent, r.config.Drain, strings.Join(watch.missing(), ", "))
	}
	phase.Endpoints = changeFiguresOf(rate, podsSent, pods.tally())
	if r.config.NodeRate > 0 {
		phase.Nodes = changeFiguresOf(r.config.NodeRate, nodesSent, nodes.tally())
	}
	return nil
}

// verify checks that the local etcd has what the sources have, and the agent's map
// what follows from it.
func (r *scaleRun) verify(ctx context.Context, local *etcdProcess, s *changes) (err error) {
	r.progress("%d clusters: checking what has arrived", r.figures.Clusters)
	want := map[string]digest{}
	for _, e := range r.sources.etcds {
		there, err := arrived(ctx, e.client, r.benchmark.config.Log, r.mesh)
		if err != nil {
			return err
		}
		maps.Copy(want, there)
	}
	delete(want, "") // of clusters that aren't in this size
	got, err := arrived(ctx, local.client, r.benchmark.config.Log, r.mesh)
	if err != nil {
		return err
	}
	if err := compare(want, got); err != nil {
		return fmt.Errorf("what has arrived isn't what was sent: %w", err)
	}
	if err := checkConfigs(ctx, local.client, r.mesh); err != nil {
		return err
	}
	target, err := r.watch.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	inMap, err := s.inMap()
	if err != nil {
		return err
	}
	// As many entries as before, so that those of former addresses have gone.
	entries, missing, err := checkMap(target, inMap)
	if err == nil && (missing > 0 || entries != r.figures.MapEntries) {
		err = fmt.Errorf("the agent's map lacks %d entries, and has %d instead of %d", missing, entries, r.figures.MapEntries)
	}
	return err
}
