// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/apiserver"
	"github.com/waggle-mesh/waggle/bench/process"
)

// measure makes the changes that count, and waits for them.
func (r *inCluster) measure(ctx context.Context, f *InClusterFigures, parts []carrier, agents *agents) error {
	r.world.book.begin()
	if err := agents.record(ctx); err != nil {
		return err
	}
	metrics, err := r.kubernetes.clients.Metrics(ctx)
	if err != nil {
		return err
	}
	machine, err := readProcessors()
	if err != nil {
		return err
	}
	var compared []*process.Process
	for _, p := range parts {
		compared = append(compared, p.Process)
	}
	sampler := startSampling(compared...)
	defer sampler.stop()
	before, err := cpuOfParts(parts)
	if err != nil {
		return err
	}
	agentsBefore, err := cpuOf(agents.processes)
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
	after, err := cpuOfParts(parts)
	if err != nil {
		return err
	}
	agentsAfter, err := cpuOf(agents.processes)
	if err != nil {
		return err
	}
	f.Seconds = time.Since(began).Seconds()
	busy, err := readProcessors()
	if err != nil {
		return err
	}
	f.Busy = busy.since(machine)
	f.samples = map[string][]sample{}
	for i, samples := range sampler.stop() {
		f.samples[parts[i].name] = samples
	}
	for i := range agentsAfter {
		f.AgentsCPUSeconds += (agentsAfter[i] - agentsBefore[i]).Seconds()
	}
	f.CPUSeconds, f.RSSBytes, f.PeakRSSBytes = map[string]float64{}, map[string]int64{}, map[string]int64{}
	for _, p := range parts {
		memory, err := p.Memory()
		if err != nil {
			return err
		}
		f.CPUSeconds[p.name] = after[p.name] - before[p.name]
		f.RSSBytes[p.name], f.PeakRSSBytes[p.name] = memory.Resident, memory.Peak
	}
	now, err := r.kubernetes.clients.Metrics(ctx)
	if err != nil {
		return err
	}
	f.setMetrics(now.Since(metrics))
	return r.deliveries(ctx, f, agents, ended)
}

// setMetrics sets what the API server says of itself.
func (f *InClusterFigures) setMetrics(m apiserver.Metrics) {
	f.Requests = Quantiles{P50: m.RequestSeconds(0.5), P99: m.RequestSeconds(0.99)}
	f.TerminatedWatches = int(m.Terminated)
	f.Watches, f.WatchEventsPerMin = m.Watches, map[string]float64{}
	for resource, n := range m.WatchEvents {
		f.WatchEventsPerMin[resource] = n / f.Seconds * time.Minute.Seconds()
	}
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
