// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"sync"
	"time"

	"github.com/waggle-mesh/waggle/bench/process"
)

// sampleEvery is the time between two samples: two reads of /proc each.
const sampleEvery = 50 * time.Millisecond

// sample is what a process has used at one moment since a round began.
type sample struct {
	at, cpu  time.Duration
	resident int64
}

// sampler follows what processes use, for the plots. Figures aren't made of it:
// they are read at the moment that they are for.
type sampler struct {
	end  chan struct{}
	wait sync.WaitGroup
	all  [][]sample
}

// startSampling begins to follow processes. A round's clock, and the CPU time of
// each, count from now.
func startSampling(processes ...*process.Process) *sampler {
	return startSamplingEvery(sampleEvery, processes...)
}

// startSamplingEvery is startSampling for rounds so long that fewer samples will do.
func startSamplingEvery(every time.Duration, processes ...*process.Process) *sampler {
	s := &sampler{end: make(chan struct{}), all: make([][]sample, len(processes))}
	began, base := time.Now(), make([]time.Duration, len(processes))
	for i, p := range processes {
		base[i], _ = p.CPU() // of one that has ended nothing is sampled
	}
	s.wait.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			for i, p := range processes {
				cpu, err := p.CPU()
				memory, err2 := p.Memory()
				if err == nil && err2 == nil {
					s.all[i] = append(s.all[i], sample{at: time.Since(began), cpu: cpu - base[i], resident: memory.Resident})
				}
			}
			select {
			case <-s.end:
				return
			case <-ticker.C:
			}
		}
	})
	return s
}

// stop ends it and gives the samples of each process. It may be called again,
// and then gives nothing.
func (s *sampler) stop() [][]sample {
	select {
	case <-s.end:
		return nil
	default:
	}
	close(s.end)
	s.wait.Wait()
	return s.all
}
