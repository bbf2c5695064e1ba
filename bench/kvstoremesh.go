// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/waggle-mesh/waggle/bench/process"
)

// KVStoreMesh measures how KVStoreMesh brings the state of all source clusters
// into an empty local etcd, what a restart costs with nothing changed, and what
// the replacement of all source etcds does: see Scenarios. Sources, KVStoreMesh
// and the local etcd are each a process of their own; the sources are the same in
// all rounds, the other two are started anew for each. Peers do the same work in
// the same call, taking turns with ours in each round, so that whatever else the
// machine has to do is shared. It works until the last round is done or ctx ends,
// and leaves no process behind. An error names what failed, with the end of the
// log of the process at fault.
//
// This process does next to nothing while it measures: it waits for the
// canaries of the local etcd and counts its keys (see arrival.go), and asks the
// kernel what the sockets have carried (sockets.go).
func KVStoreMesh(ctx context.Context, config Config) (*Report, error) {
	if err := config.Mesh.Validate(); err != nil {
		return nil, err
	}
	if err := config.checkScenarios(); err != nil {
		return nil, err
	}
	b, err := newBenchmark(config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	subjects, err := config.subjects(Mirror)
	if err != nil {
		return nil, err
	}
	head, err := b.head("kvstoremesh", subjects)
	if err != nil {
		return nil, err
	}
	m, err := b.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	head.Sources = m.sources.info
	report := &Report{Head: head}
	b.expect(config.Rounds * len(subjects))
	for n := range config.Rounds {
		for _, s := range subjects {
			b.progress("round %d of %d: %s", n+1, config.Rounds, s.name)
			figures, err := b.round(ctx, s, m, fmt.Sprintf("%s-%d", s.name, n+1))
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Rounds = append(report.Rounds, Round{Subject: s.name, Figures: figures})
			b.stepDone()
		}
	}
	return report, nil
}

// meshUnderTest are the sources, and what belongs into the local etcd.
type meshUnderTest struct {
	life    context.Context // of the benchmark
	sources *sources
	want    map[string]digest

	// Nil where there is neither a restart nor a switch.
	balancer *balancer
	// Nil where there is no switch. They are paused while they aren't used.
	replicas    *sources
	wantChanged map[string]digest
}

func (b *benchmark) prepare(ctx context.Context) (_ *meshUnderTest, err error) {
	m := &meshUnderTest{life: ctx}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.want, err = expected(b.config.Mesh); err != nil {
		return nil, fmt.Errorf("generating the mesh: %w", err)
	}
	if m.sources, err = b.startSources(ctx); err != nil {
		return nil, err
	}
	if !b.config.has(ScenarioRestart) && !b.config.has(ScenarioSwitch) {
		return m, nil
	}
	if m.balancer, err = b.newBalancer(m.sources, "balancer"); err != nil {
		return nil, err
	}
	if !b.config.has(ScenarioSwitch) {
		return m, nil
	}
	if m.wantChanged, err = expected(b.config.Mesh.Changed()); err != nil {
		return nil, fmt.Errorf("generating the changed mesh: %w", err)
	}
	if m.replicas, err = b.startSourcesOf(ctx, b.config.Mesh.Changed(), "replica"); err != nil {
		return nil, err
	}
	return m, m.replicas.pause()
}

func (m *meshUnderTest) close() {
	if m.balancer != nil {
		m.balancer.close()
	}
	if m.replicas != nil {
		m.replicas.close()
	}
	if m.sources != nil {
		m.sources.close()
	}
}

// round measures one subject once. name is that of the processes' files.
func (b *benchmark) round(ctx context.Context, s subject, m *meshUnderTest, name string) (figures Figures, err error) {
	local, env, err := b.startLocal(ctx, name, m.sources)
	if err != nil {
		return Figures{}, err
	}
	defer local.close()
	// Whoever exports the local cluster's state writes them as well.
	defer beat(ctx, b.config.Log, local)()
	if figures, err = b.start(ctx, s, m, local, env, name); err != nil {
		return Figures{}, err
	}
	if m.balancer != nil && s.restarts {
		b.progress("starting it again")
		if figures.Restart, figures.Switch, err = b.again(ctx, s, m, local, env, name); err != nil {
			return Figures{}, err
		}
	}
	return figures, nil
}

// start measures one subject from an empty local etcd.
func (b *benchmark) start(ctx context.Context, s subject, m *meshUnderTest, local *etcdProcess, env environment, name string) (_ Figures, err error) {
	arrival := watchArrival(ctx, local.client, b.config.Mesh, s.canaries)
	defer arrival.stop()
	sockets := watchSockets(b.config.Log, local, m.sources.etcds)
	defer sockets.stop()
	before, err := readCPU(local, m.sources)
	if err != nil {
		return Figures{}, err
	}
	p, err := process.Start(name, b.dir, s.argv(env), nil)
	if err != nil {
		return Figures{}, err
	}
	defer p.Kill()
	sampler := startSampling(p, local.Process)
	defer sampler.stop()
	figures, err := b.measure(ctx, p, arrival, local, m.sources, before)
	if err != nil {
		return Figures{}, err
	}
	samples := sampler.stop()
	figures.samples, figures.etcdSamples = samples[0], samples[1]
	figures.setPhases(sockets.stop(), p.Began(), b.config.Mesh.Clusters, arrival)

	if err := b.check(ctx, s, local, m.want, b.config.Mesh); err != nil {
		return Figures{}, err
	}
	if err := p.Stop(); err != nil {
		return Figures{}, err
	}
	lifetime, err := p.CPU()
	figures.LifetimeCPUSeconds = lifetime.Seconds()
	return figures, err
}

// measure waits until the subject is ready and reads all accounts.
func (b *benchmark) measure(ctx context.Context, p *process.Process, arrival *arrival, local *etcdProcess, sources *sources, before etcdCPU) (Figures, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Timeout, fmt.Errorf("not ready within %s", b.config.Timeout))
	defer cancel()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	keys, err := arrival.wait(alive)
	ready := time.Now()
	if err != nil {
		return Figures{}, fmt.Errorf("waiting for it to be ready: %w\n%s", err, p.LogTail())
	}
	cpu, err := p.CPU()
	if err != nil {
		return Figures{}, err
	}
	after, err := readCPU(local, sources)
	if err != nil {
		return Figures{}, err
	}
	memory, err := p.Memory()
	if err != nil {
		return Figures{}, err
	}
	etcdMemory, err := local.Memory()
	if err != nil {
		return Figures{}, err
	}
	return Figures{
		Keys:             keys,
		ReadySeconds:     ready.Sub(p.Began()).Seconds(),
		CPUSeconds:       cpu.Seconds(),
		EtcdCPUSeconds:   (after.local - before.local).Seconds(),
		SourceCPUSeconds: (after.sources - before.sources).Seconds(),
		PeakRSSBytes:     memory.Peak,
		AnonRSSBytes:     memory.Anonymous,
		FileRSSBytes:     memory.File,
		EtcdPeakRSSBytes: etcdMemory.Peak,
	}, nil
}

// etcdCPU are the CPU times of the etcds at one moment.
type etcdCPU struct{ local, sources time.Duration }

func readCPU(local *etcdProcess, sources *sources) (at etcdCPU, err error) {
	if at.local, err = local.CPU(); err != nil {
		return at, err
	}
	at.sources, err = sources.cpu()
	return at, err
}
