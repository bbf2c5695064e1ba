// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	perWrite := c.Rate * tickAt(c.Rate).Seconds()
	switch {
	case c.Rate <= 0 || c.Duration < time.Second:
		return errors.New("the rate must be positive, and the duration at least a second")
	case perWrite > float64(c.Mesh.Endpoints):
		return fmt.Errorf("%.0f events in a write are more than the %d endpoints of a cluster", perWrite, c.Mesh.Endpoints)
	}
	return nil
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
	if err := config.validate(); err != nil {
		return nil, err
	}
	b, err := newBenchmark(config.Config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	subjects, err := config.subjects()
	if err != nil {
		return nil, err
	}
	head, err := b.head("churn", subjects)
	if err != nil {
		return nil, err
	}
	sources, err := b.startSources(ctx)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	head.Sources = sources.info
	report := &ChurnReport{Head: head, Rate: config.Rate, Seconds: config.Duration.Seconds()}
	run := 0
	for n := range config.Rounds {
		for _, s := range subjects {
			run++
			b.progress("round %d of %d: %s, %g/s for %s", n+1, config.Rounds, s.name, config.Rate, config.Duration)
			c := churn{benchmark: b, config: config, sources: sources, run: run, name: fmt.Sprintf("%s-%d", s.name, n+1)}
			figures, err := c.round(ctx, s)
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Rounds = append(report.Rounds, ChurnRound{Subject: s.name, ChurnFigures: figures})
		}
	}
	return report, nil
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
	if err := os.MkdirAll(configs, 0o700); err != nil {
		return nil, "", err
	}
	for i := range c.config.Mesh.Clusters {
		if err := os.WriteFile(filepath.Join(configs, c.config.Mesh.Cluster(i).Name), etcdConfig(local.url), 0o600); err != nil {
			return nil, "", err
		}
	}
	p, err := process.Start(name, c.dir, []string{c.config.Program, "bench", "follow",
		"--cluster-name=" + localName, "--cluster-id=" + strconv.Itoa(localID),
		fmt.Sprintf("--max-connected-clusters=%d", c.config.Mesh.MaxConnectedClusters()),
		"--clustermesh-config=" + configs, "--ipcache-backend=memory",
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
	watch, err := watchCache(ctx, local, book, c.run)
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
	load := load{mesh: c.config.Mesh, sources: c.sources, run: c.run, rate: c.config.Rate, ledger: book}
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

// cacheWatch follows the endpoints in the local etcd.
type cacheWatch struct {
	cancel context.CancelFunc
	run    sync.WaitGroup

	mu      sync.Mutex
	commits int
	events  int
	failed  error
}

// watchCache begins to follow; what is there already isn't told.
func watchCache(ctx context.Context, local *etcdProcess, book *ledger, run int) (*cacheWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &cacheWatch{cancel: cancel}
	root, _, _ := bytes.Cut([]byte(wire.CachePrefix(wire.Endpoints, localName)), []byte(localName))
	ch := local.client.Etcd().Watch(ctx, string(root), clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
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

func (w *cacheWatch) stop() { w.cancel(); w.run.Wait() }

func (w *cacheWatch) counts() (commits, events int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.commits, w.events
}

func (w *cacheWatch) err() error {
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
