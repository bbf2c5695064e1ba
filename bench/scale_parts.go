// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"path/filepath"
	"time"

	"github.com/waggle-mesh/waggle/bench/process"
)

// The parts of a mesh whose use of the machine is reported.
const (
	partKVStoreMesh = "kvstoremesh"
	partEtcd        = "etcd"
	partAgent       = "agent"
)

// scaleParts are all of them, in the order of reports.
var scaleParts = []string{partKVStoreMesh, partEtcd, partAgent}

// The phases of a size, in their order. The last one is of each rate.
const (
	phaseReplicate = "replicate"
	phaseAgent     = "agent"
	phaseIdle      = "idle"
	phaseChurn     = "churn-%g"
)

// scaleRun measures one size of a mesh.
type scaleRun struct {
	*benchmark
	config   ScaleConfig
	sources  *sources
	watch    *mapWatch
	capacity int
	mesh     Mesh
	name     string

	parts   []*part
	figures ScaleFigures
}

// part is a process whose use of the machine is followed.
type part struct {
	name    string
	process *process.Process
	sampler *sampler
	// began is when its samples begin, and base the CPU time it had used by then.
	began time.Time
	base  time.Duration
}

// scaleSamples is the time between two samples of a part. It is a fraction of a
// second, over which the busiest one is looked for.
const scaleSamples = 200 * time.Millisecond

// add begins to follow a part; of one that was just started nothing is missed.
func (r *scaleRun) add(name string, p *process.Process) {
	one := &part{name: name, process: p, began: time.Now()}
	one.base, _ = p.CPU() // it has just been started; the next reading says so otherwise
	one.sampler = startSamplingEvery(scaleSamples, p)
	r.parts = append(r.parts, one)
}

func (r *scaleRun) close() {
	for _, one := range r.parts {
		one.sampler.stop()
	}
}

func (r *scaleRun) file(kind string) string { return filepath.Join(r.dir, r.name+"-"+kind) }

// phase accounts what is done to a phase of that name. The phase that it gives can
// still be changed.
func (r *scaleRun) phase(name string, do func() error) (*ScalePhase, error) {
	before := map[string]time.Duration{}
	for _, one := range r.parts {
		cpu, err := one.process.CPU()
		if err != nil {
			return nil, err
		}
		if err := one.process.ResetPeak(); err != nil {
			return nil, err
		}
		before[one.name] = cpu
	}
	sources, err := r.sources.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := do(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	phase := ScalePhase{Name: name, Seconds: took.Seconds(), Parts: map[string]PartFigures{}, began: began}
	for _, one := range r.parts {
		cpu, err := one.process.CPU()
		if err != nil {
			return nil, err
		}
		memory, err := one.process.Memory()
		if err != nil {
			return nil, err
		}
		used := cpu - before[one.name] // all of it, if it was started in this phase
		phase.Parts[one.name] = PartFigures{
			CPUSeconds: used.Seconds(), Cores: used.Seconds() / took.Seconds(),
			PeakRSSBytes: memory.Peak, EndRSSBytes: memory.Resident, EndAnonBytes: memory.Anonymous,
		}
	}
	after, err := r.sources.cpu()
	if err != nil {
		return nil, err
	}
	phase.SourceCPUSeconds = (after - sources).Seconds()
	r.figures.Phases = append(r.figures.Phases, &phase)
	return &phase, nil
}

// keepSamples ends the sampling, and finds the busiest second of each part in each
// phase.
func (r *scaleRun) keepSamples() {
	r.figures.samples = map[string][]sample{}
	zero := r.figures.Phases[0].began
	for _, one := range r.parts {
		samples := one.sampler.stop()[0]
		for i := range samples {
			samples[i].at += one.began.Sub(zero)
			samples[i].cpu += one.base
		}
		r.figures.samples[one.name] = samples
		for _, phase := range r.figures.Phases {
			if f, ok := phase.Parts[one.name]; ok {
				from := phase.began.Sub(zero)
				to := from + time.Duration(phase.Seconds*float64(time.Second))
				f.CoresMax = max(f.Cores, busiest(samples, from, to)) // of a phase of less than a second there is one figure
				phase.Parts[one.name] = f
			}
		}
	}
	for _, phase := range r.figures.Phases {
		phase.at = phase.began.Sub(zero)
	}
}

// busiest is the most CPU time that was used in a second, in seconds, of those that
// lie between two times; 0 if there is none.
func busiest(samples []sample, from, to time.Duration) (most float64) {
	first := 0
	for i, s := range samples {
		if s.at < from {
			first = i + 1
			continue
		}
		if s.at > to {
			break
		}
		// The shortest window of at least a second that ends here.
		for first < i && s.at-samples[first+1].at >= time.Second {
			first++
		}
		if passed := s.at - samples[first].at; passed >= time.Second {
			most = max(most, (s.cpu-samples[first].cpu).Seconds()/passed.Seconds())
		}
	}
	return most
}
