// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"time"

	"github.com/waggle-mesh/waggle/bench/process"
)

// accounts say what the parts of a mesh use, phase by phase.
type accounts struct {
	sources *sources
	parts   []*part
	phases  []*ScalePhase
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
func (a *accounts) add(name string, p *process.Process) {
	one := &part{name: name, process: p, began: time.Now()}
	one.base, _ = p.CPU() // it has just been started; the next reading says so otherwise
	one.sampler = startSamplingEvery(scaleSamples, p)
	a.parts = append(a.parts, one)
}

// stopSampling ends the sampling, of what keepSamples hasn't ended.
func (a *accounts) stopSampling() {
	for _, one := range a.parts {
		one.sampler.stop()
	}
}

// phase accounts what is done to a phase of that name. The phase that it gives can
// still be changed.
func (a *accounts) phase(name string, do func() error) (*ScalePhase, error) {
	before := map[string]time.Duration{}
	for _, one := range a.parts {
		cpu, err := one.process.CPU()
		if err != nil {
			return nil, err
		}
		if err := one.process.ResetPeak(); err != nil {
			return nil, err
		}
		before[one.name] = cpu
	}
	sources, err := a.sources.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := do(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	phase := ScalePhase{Name: name, Seconds: took.Seconds(), Parts: map[string]PartFigures{}, began: began}
	for _, one := range a.parts {
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
	after, err := a.sources.cpu()
	if err != nil {
		return nil, err
	}
	phase.SourceCPUSeconds = (after - sources).Seconds()
	a.phases = append(a.phases, &phase)
	return &phase, nil
}

// keepSamples ends the sampling, finds the busiest second of each part in each
// phase, and gives the samples of each part, with times since the first phase began.
func (a *accounts) keepSamples() map[string][]sample {
	all := map[string][]sample{}
	zero := a.phases[0].began
	for _, one := range a.parts {
		samples := one.sampler.stop()[0]
		for i := range samples {
			samples[i].at += one.began.Sub(zero)
			samples[i].cpu += one.base
		}
		all[one.name] = samples
		for _, phase := range a.phases {
			if f, ok := phase.Parts[one.name]; ok {
				from := phase.began.Sub(zero)
				to := from + time.Duration(phase.Seconds*float64(time.Second))
				f.CoresMax = max(f.Cores, busiest(samples, from, to)) // of a phase of less than a second there is one figure
				phase.Parts[one.name] = f
			}
		}
	}
	for _, phase := range a.phases {
		phase.at = phase.began.Sub(zero)
	}
	return all
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
