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
// into an empty local etcd. Sources, KVStoreMesh and the local etcd are each a
// process of their own; the sources are the same in all rounds, the other two
// are started anew for each. Peers do the same work in the same call, taking
// turns with ours in each round, so that whatever else the machine has to do is
// shared. It works until the last round is done or ctx ends,
// and leaves no process behind. An error names what failed, with the end of the
// log of the process at fault.
//
// This process does next to nothing while it measures: it waits for the
// canaries of the local etcd and counts its keys (see arrival.go).
func KVStoreMesh(ctx context.Context, config Config) (*Report, error) {
	if err := config.Mesh.Validate(); err != nil {
		return nil, err
	}
	b, err := newBenchmark(config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	subjects, err := config.subjects()
	if err != nil {
		return nil, err
	}
	head, err := b.head("kvstoremesh", subjects)
	if err != nil {
		return nil, err
	}
	want, err := expected(config.Mesh)
	if err != nil {
		return nil, fmt.Errorf("generating the mesh: %w", err)
	}
	sources, err := b.startSources(ctx)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	head.Sources = sources.info
	report := &Report{Head: head}
	for n := range config.Rounds {
		for _, s := range subjects {
			b.progress("round %d of %d: %s", n+1, config.Rounds, s.name)
			figures, err := b.round(ctx, s, sources, want, fmt.Sprintf("%s-%d", s.name, n+1))
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Rounds = append(report.Rounds, Round{Subject: s.name, Figures: figures})
		}
	}
	return report, nil
}

// round measures one subject once. name is that of the processes' files.
func (b *benchmark) round(ctx context.Context, s subject, sources *sources, want map[string]digest, name string) (_ Figures, err error) {
	local, env, err := b.startLocal(ctx, name, sources)
	if err != nil {
		return Figures{}, err
	}
	defer local.close()
	// Whoever exports the local cluster's state writes them as well.
	defer beat(ctx, b.config.Log, local)()
	arrival := watchArrival(ctx, local.client, b.config.Mesh, s.canaries)
	defer arrival.stop()
	before, err := readCPU(local, sources)
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
	figures, err := b.measure(ctx, p, arrival, local, sources, before)
	if err != nil {
		return Figures{}, err
	}
	samples := sampler.stop()
	figures.samples, figures.etcdSamples = samples[0], samples[1]

	b.progress("checking what has arrived")
	got, err := arrived(ctx, local.client, b.config.Log, b.config.Mesh)
	if err != nil {
		return Figures{}, err
	}
	if err := compare(want, got); err != nil {
		return Figures{}, fmt.Errorf("what has arrived isn't what was sent: %w", err)
	}
	if err := checkConfigs(ctx, local.client, b.config.Mesh); err != nil {
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
