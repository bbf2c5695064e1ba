// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ChurnConfig is what to measure of a steady change.
type ChurnConfig struct {
	Config
	// Rate is the number of events per second over all clusters.
	Rate float64
	// Duration is how long events are sent.
	Duration time.Duration
	// Drain is how long to wait afterwards for what hasn't arrived.
	Drain time.Duration
}

func (c ChurnConfig) validate() error {
	if err := c.Mesh.Validate(); err != nil {
		return err
	}
	if c.Duration < time.Second {
		return errors.New("the duration must be at least a second")
	}
	load := c.load()
	return load.validate()
}

// load is what to send, but for where to and what.
func (c ChurnConfig) load() load {
	return load{mesh: c.Mesh, rate: c.Rate, resource: wire.Endpoints}
}

// stamped replaces pods by others of their workload, whose names say which event
// of the run they are.
func stamped(run int, book *ledger) func(Cluster, int, time.Time) (string, []byte, error) {
	return func(c Cluster, i int, due time.Time) (string, []byte, error) {
		e := c.endpointObject(i)
		stamp := follower.Stamp{Run: run, Number: book.send(objectOf{c.index, i}, due), Due: due}
		e.Pod = stamp.Pod()
		value, err := wire.MarshalEndpoint(&e)
		return wire.EndpointKey(e.Prefix), value, err
	}
}

// Churn measures how steady change in all source clusters gets through
// KVStoreMesh and the local etcd into the table of an agent. The sources and
// their content are those of KVStoreMesh, and so are the peers. An event is a
// pod that is replaced by another one of its workload at the same address.
//
// The agent is the same for all subjects: a follower of its own process, with
// its map in memory. This process writes to the sources, and watches the local
// etcd for the endpoints.
func Churn(ctx context.Context, config ChurnConfig) (*ChurnReport, error) {
	run, err := startChurns(ctx, config, "churn")
	if err != nil {
		return nil, err
	}
	defer run.close()
	report := &ChurnReport{Head: run.head, Rate: config.Rate, Seconds: config.Duration.Seconds()}
	run.expect(config.Rounds * len(run.subjects))
	for n := range config.Rounds {
		for _, s := range run.subjects {
			run.progress("round %d of %d: %s, %g/s for %s", n+1, config.Rounds, s.name, config.Rate, config.Duration)
			figures, err := run.round(ctx, s, config.Rate)
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Rounds = append(report.Rounds, ChurnRound{Subject: s.name, ChurnFigures: figures})
			run.stepDone()
		}
	}
	return report, nil
}

// churns are the rounds of one call: what they share.
type churns struct {
	*benchmark
	config   ChurnConfig
	subjects []subject
	head     Head
	sources  *sources
	// rounds is the number of rounds so far.
	rounds int
}

func startChurns(ctx context.Context, config ChurnConfig, name string) (_ *churns, err error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	r := &churns{config: config}
	if r.benchmark, err = newBenchmark(config.Config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.benchmark.close()
		}
	}()
	if r.subjects, err = config.subjects(); err != nil {
		return nil, err
	}
	if r.head, err = r.benchmark.head(name, r.subjects); err != nil {
		return nil, err
	}
	if r.sources, err = r.startSources(ctx); err != nil {
		return nil, err
	}
	r.head.Sources = r.sources.info
	return r, nil
}

func (r *churns) close() {
	r.sources.close()
	r.benchmark.close()
}

// round measures a subject, from empty, at one rate.
func (r *churns) round(ctx context.Context, s subject, rate float64) (ChurnFigures, error) {
	r.rounds++
	config := r.config
	config.Rate = rate
	c := churn{benchmark: r.benchmark, config: config, sources: r.sources, run: r.rounds, name: fmt.Sprintf("%s-%d", s.name, r.rounds)}
	return c.round(ctx, s)
}

// churn is one round of one subject.
type churn struct {
	*benchmark
	config  ChurnConfig
	sources *sources
	run     int
	name    string
}

func (c *churn) round(ctx context.Context, s subject) (_ ChurnFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout+c.config.Duration+c.config.Drain,
		fmt.Errorf("not done within %s beyond the time to measure", c.config.Timeout))
	defer cancel()
	local, env, err := c.startLocal(ctx, c.name, c.sources)
	if err != nil {
		return ChurnFigures{}, err
	}
	defer local.close()
	defer beat(ctx, c.benchmark.config.Log, local)()
	arrival := watchArrival(ctx, local.client, c.config.Mesh, s.canaries)
	defer arrival.stop()
	p, err := process.Start(c.name, c.dir, s.argv(env), nil)
	if err != nil {
		return ChurnFigures{}, err
	}
	defer p.Kill()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	if _, err := arrival.wait(alive); err != nil {
		return ChurnFigures{}, fmt.Errorf("waiting for it to be ready: %w\n%s", err, p.LogTail())
	}
	agent, socket, err := c.startFollower(alive, local)
	if err != nil {
		return ChurnFigures{}, err
	}
	defer agent.Kill()
	figures, err := c.measure(alive, p, local, agent, socket)
	if err != nil {
		return ChurnFigures{}, err
	}
	return figures, errors.Join(agent.Stop(), p.Stop())
}

// startFollower starts an agent on the local etcd and waits until it has all
// endpoints.
func (c *churn) startFollower(ctx context.Context, local *etcdProcess) (*process.Process, string, error) {
	name := c.name + "-agent"
	configs, socket := filepath.Join(c.dir, name+"-clustermesh"), filepath.Join(c.dir, name+".sock")
	if err := writeConfigs(configs, c.config.Mesh, func(int) string { return local.url }); err != nil {
		return nil, "", err
	}
	p, err := process.Start(name, c.dir, []string{c.config.Program, "bench", "follow",
		"--cluster-name=" + localName, "--cluster-id=" + strconv.Itoa(localID),
		fmt.Sprintf("--max-connected-clusters=%d", c.config.Mesh.MaxConnectedClusters()),
		"--clustermesh-config=" + configs, "--ipcache-backend=memory", "--state-dir=",
		"--follow-socket=" + socket, "--follow-run=" + strconv.Itoa(c.run)}, nil)
	if err != nil {
		return nil, "", err
	}
	alive, stop := whileAlive(ctx, p)
	defer stop()
	if _, err := askUntil(alive, socket, func(s follower.Status) bool {
		return s.Entries == c.config.Mesh.Clusters*c.config.Mesh.Endpoints
	}); err != nil {
		p.Kill()
		return nil, "", fmt.Errorf("waiting for the agent: %w\n%s", err, p.LogTail())
	}
	return p, socket, nil
}

// askAgain is the time between two questions to a follower.
const askAgain = 20 * time.Millisecond

// askUntil asks until the answer is right or ctx ends, and gives the last one.
func askUntil(ctx context.Context, socket string, right func(follower.Status) bool) (last follower.Status, err error) {
	for {
		status, err := follower.Ask(ctx, socket)
		if err == nil {
			if last = status; right(status) {
				return last, nil
			}
		}
		select {
		case <-ctx.Done():
			return last, errors.Join(context.Cause(ctx), err)
		case <-time.After(askAgain):
		}
	}
}

// measure sends events and waits for them.
func (c *churn) measure(ctx context.Context, p *process.Process, local *etcdProcess, agent *process.Process, socket string) (f ChurnFigures, err error) {
	book := newLedger()
	watch, err := watchEndpoints(ctx, local, cachedEndpoints(), book, c.run)
	if err != nil {
		return f, err
	}
	defer watch.stop()
	before, err := c.cpu(p, local, agent)
	if err != nil {
		return f, err
	}
	sampler := startSampling(p, local.Process)
	defer sampler.stop()
	load := c.config.load()
	load.sources, load.next = c.sources, stamped(c.run, book)
	began := time.Now()
	if err := load.send(ctx, c.config.Duration); err != nil {
		return f, err
	}
	end := book.tally()
	f.Seconds = time.Since(began).Seconds()
	after, err := c.cpu(p, local, agent)
	if err != nil {
		return f, err
	}
	samples := sampler.stop()
	f.samples, f.etcdSamples = samples[0], samples[1]
	f.CPUSeconds = (after.subject - before.subject).Seconds()
	f.EtcdCPUSeconds = (after.etcds.local - before.etcds.local).Seconds()
	f.SourceCPUSeconds = (after.etcds.sources - before.etcds.sources).Seconds()
	f.AgentCPUSeconds = (after.agent - before.agent).Seconds()
	memory, err := p.Memory()
	if err != nil {
		return f, err
	}
	f.PeakRSSBytes = memory.Peak
	f.QueueEnd, f.QueueMax = end.sent-end.arrived, end.longest

	drain, cancel := context.WithTimeout(ctx, c.config.Drain)
	defer cancel()
	f.Drained = waitComplete(drain, book)
	all := book.tally()
	status, err := c.atAgent(ctx, drain, socket, all.sum)
	if err != nil {
		return f, err
	}
	f.Sent, f.Delivered = all.sent, all.sent
	if f.Drained = f.Drained && status.Sum == all.sum; !f.Drained {
		f.Delivered = status.Seen
	}
	f.Overtaken = f.Delivered - status.Seen
	f.Latency = latencyOf(status.Latencies)
	f.Cache = latencyOf(all.latencies)
	f.Commits, f.CommitEvents = watch.counts()
	f.agent, f.cache = status.Latencies, all.latencies
	return f, watch.err()
}

// atAgent gives what the agent has seen when it has the last state of every
// object, or else when drain ends.
func (c *churn) atAgent(ctx, drain context.Context, socket string, sum int) (follower.Status, error) {
	if status, err := askUntil(drain, socket, func(s follower.Status) bool { return s.Sum == sum }); err == nil {
		return status, nil
	}
	return follower.Ask(ctx, socket)
}

// waitComplete waits for all events in the local etcd; false if ctx ended first.
func waitComplete(ctx context.Context, book *ledger) bool {
	for {
		done, changed := book.complete()
		if done {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// churnCPU are the CPU times of all processes at one moment.
type churnCPU struct {
	subject, agent time.Duration
	etcds          etcdCPU
}

func (c *churn) cpu(p *process.Process, local *etcdProcess, agent *process.Process) (at churnCPU, err error) {
	if at.subject, err = p.CPU(); err != nil {
		return at, err
	}
	if at.agent, err = agent.CPU(); err != nil {
		return at, err
	}
	at.etcds, err = readCPU(local, c.sources)
	return at, err
}

// endpointWatch follows endpoints in an etcd, and counts the commits that they
// came in.
type endpointWatch struct {
	cancel context.CancelFunc
	run    sync.WaitGroup

	mu      sync.Mutex
	commits int
	events  int
	failed  error
}

// cachedEndpoints is the root of the endpoints of all clusters in the cached layout.
func cachedEndpoints() string {
	root, _, _ := strings.Cut(wire.CachePrefix(wire.Endpoints, localName), localName)
	return root
}

// watchEndpoints begins to follow those below a root; what is there already
// isn't told.
func watchEndpoints(ctx context.Context, local *etcdProcess, root string, book *ledger, run int) (*endpointWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &endpointWatch{cancel: cancel}
	ch := local.client.Etcd().Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
	if first, ok := <-ch; !ok || first.Err() != nil {
		cancel()
		return nil, fmt.Errorf("watching %q: %w", root, errors.Join(first.Err(), ctx.Err()))
	}
	w.run.Go(func() {
		var revision int64
		for resp := range ch {
			at := time.Now()
			w.mu.Lock()
			for _, ev := range resp.Events {
				w.events++
				if ev.Kv.ModRevision != revision {
					revision = ev.Kv.ModRevision
					w.commits++
				}
			}
			w.failed = errors.Join(w.failed, resp.Err())
			w.mu.Unlock()
			for _, ev := range resp.Events {
				if stamp, ok := follower.FindStamp(ev.Kv.Value); ok && stamp.Run == run {
					book.arrive(stamp.Number, at)
				}
			}
		}
	})
	return w, nil
}

func (w *endpointWatch) stop() { w.cancel(); w.run.Wait() }

func (w *endpointWatch) counts() (commits, events int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.commits, w.events
}

func (w *endpointWatch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// latencyOf sums up a histogram of microseconds.
func latencyOf(snapshot *hdrhistogram.Snapshot) Latency {
	h := hdrhistogram.Import(snapshot)
	at := func(v int64) float64 { return float64(v) / 1000 }
	return Latency{
		P50: at(h.ValueAtQuantile(50)), P90: at(h.ValueAtQuantile(90)), P99: at(h.ValueAtQuantile(99)), Max: at(h.Max()),
	}
}
