// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cespare/xxhash/v2"

	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The scenarios of KVStoreMesh.
const (
	// ScenarioStart is from an empty local etcd until all is in it.
	ScenarioStart = "start"
	// ScenarioRestart is a stop and a start with nothing changed meanwhile.
	ScenarioRestart = "restart"
	// ScenarioSwitch is the replacement of all source etcds by others, in which
	// one key in a hundred differs.
	ScenarioSwitch = "switch"
)

// Scenarios are all of them, in the order in which a round goes through them.
var Scenarios = []string{ScenarioStart, ScenarioRestart, ScenarioSwitch}

// scenarios checks which ones were asked for.
func (c Config) checkScenarios() error {
	for _, name := range c.Scenarios {
		if !slices.Contains(Scenarios, name) {
			return fmt.Errorf("scenario %q: must be one or several of %s", name, strings.Join(Scenarios, ", "))
		}
	}
	if c.has(ScenarioSwitch) && c.Mesh.Endpoints == 0 {
		return errors.New("a switch needs endpoints, of which some differ afterwards")
	}
	return nil
}

func (c Config) has(scenario string) bool { return slices.Contains(c.Scenarios, scenario) }

// Again is what one round has measured of a subject that was complete before: of
// a restart, or of a switch. CPU times are those from its beginning until Seconds
// later, those of a restart from the start of the process.
type Again struct {
	// Seconds is, of a restart, the time from the start of the process until it
	// says at /readyz that it is ready; of a switch, from when the addresses lead
	// to the other etcds until the local etcd has the last difference.
	Seconds          float64 `json:"seconds"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	EtcdCPUSeconds   float64 `json:"etcd_cpu_seconds"`
	SourceCPUSeconds float64 `json:"source_cpu_seconds"`
	// Changed is the number of keys that differ: those that have to be written.
	Changed int `json:"changed"`
	// Writes are those until nothing was written any more for a second.
	Writes Writes `json:"writes"`
}

// again measures a restart and a switch of a subject that was complete and has
// been stopped. It reaches the sources through the balancer, so that they can be
// replaced behind it.
func (b *benchmark) again(ctx context.Context, s subject, m *meshUnderTest, local *etcdProcess, env environment, name string) (restart, replaced *Again, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Timeout, fmt.Errorf("not ready within %s after a restart", b.config.Timeout))
	defer cancel()
	env.clusterMeshConfig = m.balancer.configs
	if env.healthPort, err = freePort(); err != nil {
		return nil, nil, err
	}
	run := &againRun{benchmark: b, local: local}
	if err := run.begin(ctx, m.sources); err != nil {
		return nil, nil, err
	}
	p, err := process.Start(name+"-again", b.dir, s.argv(env), nil)
	if err != nil {
		return nil, nil, err
	}
	defer p.Kill()
	run.subject, run.began = p, p.Began()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	if err := waitReadyz(alive, env.healthPort); err != nil {
		return nil, nil, fmt.Errorf("waiting for it to be ready again: %w\n%s", err, p.LogTail())
	}
	if restart, err = run.end(alive, m.sources); err != nil {
		return nil, nil, err
	}
	if err := b.check(ctx, s, local, m.want, b.config.Mesh); err != nil {
		return nil, nil, fmt.Errorf("after a restart: %w", err)
	}
	if b.config.has(ScenarioSwitch) && s.switches {
		if replaced, err = b.replace(alive, s, m, run); err != nil {
			return nil, nil, fmt.Errorf("after a switch: %w\n%s", err, p.LogTail())
		}
	}
	if !b.config.has(ScenarioRestart) {
		restart = nil
	}
	return restart, replaced, p.Stop()
}

// replace measures a switch.
func (b *benchmark) replace(ctx context.Context, s subject, m *meshUnderTest, run *againRun) (_ *Again, err error) {
	if err := m.replicas.resume(); err != nil {
		return nil, err
	}
	m.replicas.beatLater(ctx, b)
	defer func() {
		// The next subject finds the sources as this one did.
		m.balancer.aim(m.sources)
		err = errors.Join(err, m.replicas.pause(), m.sources.resume())
		m.sources.beatLater(m.life, b)
	}()
	arrival, err := b.watchChanges(ctx, run.local)
	if err != nil {
		return nil, err
	}
	defer arrival.stop()
	changed := len(arrival.missing)
	if err := run.begin(ctx, m.replicas); err != nil {
		return nil, err
	}
	run.began = time.Now()
	m.balancer.aim(m.replicas)
	if err := m.sources.pause(); err != nil { // as if their replicas had died
		return nil, err
	}
	if err := arrival.wait(ctx); err != nil {
		return nil, fmt.Errorf("waiting for the differences: %w", err)
	}
	out, err := run.end(ctx, m.replicas)
	if err != nil {
		return nil, err
	}
	out.Changed = changed
	return out, b.check(ctx, s, run.local, m.wantChanged, b.config.Mesh)
}

// againRun is one scenario under way.
type againRun struct {
	*benchmark
	subject  *process.Process // nil before its start
	local    *etcdProcess
	began    time.Time
	revision int64
	own      time.Duration
	etcds    etcdCPU
}

// begin reads the accounts before a scenario.
func (r *againRun) begin(ctx context.Context, sources *sources) (err error) {
	if r.revision, err = waitCalm(ctx, r.local); err != nil {
		return err
	}
	if r.own = 0; r.subject != nil {
		if r.own, err = r.subject.CPU(); err != nil {
			return err
		}
	}
	r.etcds, err = readCPU(r.local, sources)
	return err
}

// end reads the accounts right after it, and then what was written.
func (r *againRun) end(ctx context.Context, sources *sources) (*Again, error) {
	out := &Again{Seconds: time.Since(r.began).Seconds()}
	own, err := r.subject.CPU()
	if err != nil {
		return nil, err
	}
	etcds, err := readCPU(r.local, sources)
	if err != nil {
		return nil, err
	}
	out.CPUSeconds = (own - r.own).Seconds()
	out.EtcdCPUSeconds = (etcds.local - r.etcds.local).Seconds()
	out.SourceCPUSeconds = (etcds.sources - r.etcds.sources).Seconds()
	until, err := waitCalm(ctx, r.local)
	if err != nil {
		return nil, err
	}
	out.Writes, err = writesBetween(ctx, r.local, r.revision, until)
	return out, err
}

// changeArrival tells when the local etcd has each of the differences.
type changeArrival struct {
	// missing are the keys that differ, with the hash of what they are to be; 0
	// is a deletion.
	missing map[string]uint64
	watch   clientv3.WatchChan
	cancel  context.CancelFunc
}

// watchChanges begins to watch, before the switch.
func (b *benchmark) watchChanges(ctx context.Context, local *etcdProcess) (*changeArrival, error) {
	a := &changeArrival{missing: map[string]uint64{}}
	for i := range b.config.Mesh.Clusters {
		c := b.config.Mesh.Cluster(i)
		changes, err := c.differences()
		if err != nil {
			return nil, err
		}
		for _, change := range changes {
			key := wire.CachePrefix(wire.Endpoints, c.Name) + change.key
			if a.missing[key] = 0; !change.deleted {
				a.missing[key] = xxhash.Sum64(change.value)
			}
		}
	}
	ctx, a.cancel = context.WithCancel(ctx)
	a.watch = local.client.Etcd().Watch(ctx, wire.CacheRoot, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if first, ok := <-a.watch; !ok || first.Err() != nil {
		a.cancel()
		return nil, fmt.Errorf("watching %q: %w", wire.CacheRoot, errors.Join(first.Err(), context.Cause(ctx)))
	}
	return a, nil
}

func (a *changeArrival) stop() { a.cancel() }

func (a *changeArrival) wait(ctx context.Context) error {
	for len(a.missing) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%d are missing)", context.Cause(ctx), len(a.missing))
		case resp, ok := <-a.watch:
			if err := resp.Err(); err != nil || !ok {
				return fmt.Errorf("watching %q: %w", wire.CacheRoot, errors.Join(err, context.Cause(ctx)))
			}
			for _, ev := range resp.Events {
				var hash uint64
				if ev.Type == clientv3.EventTypePut {
					hash = xxhash.Sum64(ev.Kv.Value)
				}
				if want, ok := a.missing[string(ev.Kv.Key)]; ok && want == hash {
					delete(a.missing, string(ev.Kv.Key))
				}
			}
		}
	}
	return nil
}

// check says whether the local etcd has what it is to have.
func (b *benchmark) check(ctx context.Context, s subject, local *etcdProcess, want map[string]digest, mesh Mesh) error {
	b.progress("checking what has arrived")
	got, err := arrived(ctx, local.client, b.config.Log, mesh)
	if err != nil {
		return err
	}
	if err := compare(want, got); err != nil {
		return fmt.Errorf("what has arrived isn't what was sent: %w", err)
	}
	if !s.configs {
		return nil
	}
	return checkConfigs(ctx, local.client, mesh)
}

// scenarioLines are the figures of phases, restarts and switches.
var scenarioLines = slices.Concat(
	[]line[Figures]{
		one("connected to all", phasesIn, func(p Phases) float64 { return p.Connect }, seconds, ""),
		one("99 % listed", phasesIn, func(p Phases) float64 { return p.List }, seconds, ""),
		one("99 % written", phasesIn, func(p Phases) float64 { return p.Write }, seconds, ""),
		one("last canary", canariesIn, func(p Phases) float64 { return p.Canary }, seconds, ""),
	},
	againLines("restart", func(f Figures) *Again { return f.Restart }),
	againLines("switch", func(f Figures) *Again { return f.Switch }),
)

func phasesIn(f Figures) *Phases { return f.Phases }

// canariesIn are the phases of a subject that writes canaries.
func canariesIn(f Figures) *Phases {
	if f.Phases == nil || f.Phases.Canary == 0 {
		return nil
	}
	return f.Phases
}

func againLines(name string, part func(Figures) *Again) []line[Figures] {
	return []line[Figures]{
		one(name+": time", part, func(a Again) float64 { return a.Seconds }, seconds, name+"_seconds"),
		one(name+": CPU", part, func(a Again) float64 { return a.CPUSeconds }, seconds, name+"_cpu"),
		one(name+": CPU of the local etcd", part, func(a Again) float64 { return a.EtcdCPUSeconds }, seconds, name+"_etcd_cpu"),
		one(name+": CPU of the source etcds", part, func(a Again) float64 { return a.SourceCPUSeconds }, seconds, ""),
		one(name+": keys that differ", part, func(a Again) float64 { return float64(a.Changed) }, count, ""),
		one(name+": writes", part, func(a Again) float64 { return float64(a.Writes.All()) }, count, name+"_writes"),
		one(name+": of which canaries", part, func(a Again) float64 { return float64(a.Writes.Canaries) }, count, ""),
		one(name+": commits", part, func(a Again) float64 { return float64(a.Writes.Commits) }, count, ""),
	}
}
