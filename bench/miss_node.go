// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/netns"
)

// missNode is the node that misses are measured on, and all that it needs:
//
//	pod ── lxc…  TCX ─signal▶ agent ─▶ KVStoreMesh's read-through ─▶ etcd of the other cluster
//	        map ◀──────────────┘
type missNode struct {
	*benchmark
	config  MissConfig
	cluster Cluster

	sources     *sources
	local       *etcdProcess
	kvstoremesh *process.Process
	nodes       *netns.Nodes
	// configs is the agent's directory of remote clusters, and readThrough its
	// configuration of that.
	configs, readThrough string
}

var (
	// The pods of the node; no pod of the other cluster has such an address.
	missPod, scanPod = netip.MustParseAddr("192.168.79.5"), netip.MustParseAddr("192.168.79.6")
	// scanNetwork is claimed for the other cluster by flag; nothing is there.
	scanNetwork = netip.MustParsePrefix("11.0.0.0/8")
)

// missPort is where nobody listens: packets are dropped after they were looked at.
const missPort = 9

func (n *missNode) measure(ctx context.Context) (f MissFigures, err error) {
	if err := n.start(ctx); err != nil {
		return f, err
	}
	defer n.close()
	if err := n.misses(ctx, &f); err != nil {
		return f, err
	}
	if n.config.Scan > 0 {
		if err := n.scan(ctx, &f); err != nil {
			return f, fmt.Errorf("during the scan: %w", err)
		}
	}
	return f, n.packets(ctx, &f)
}

// start starts all but the agent.
func (n *missNode) start(ctx context.Context) (err error) {
	if n.sources, err = n.startSources(ctx); err != nil {
		return err
	}
	if err := n.fillOnDemand(ctx, n.sources.of(0)); err != nil {
		return fmt.Errorf("filling the source etcd: %w", err)
	}
	var env environment
	if n.local, env, err = n.startLocal(ctx, "kvstoremesh", n.sources); err != nil {
		return err
	}
	address := n.network.address() + ":23791"
	argv := append([]string{n.benchmark.config.Program, "kvstoremesh", "--ondemand-listen-address=" + address, "--enable-heartbeat"}, env.flags()...)
	if n.kvstoremesh, err = process.Start("kvstoremesh", n.dir, argv, nil); err != nil {
		return err
	}
	n.configs, n.readThrough = filepath.Join(n.dir, "agent-clustermesh"), filepath.Join(n.dir, "read-through.yaml")
	if err := writeConfigs(n.configs, n.config.Mesh, func(int) string { return n.local.url }); err != nil {
		return err
	}
	if err := os.WriteFile(n.readThrough, etcdConfig("http://"+address), 0o600); err != nil {
		return err
	}
	if n.nodes, err = netns.Connect(false); err != nil {
		return err
	}
	return errors.Join(n.nodes.Here.Drop(netip.PrefixFrom(podNetwork, 8)), n.nodes.Here.Drop(scanNetwork))
}

func (n *missNode) close() {
	_ = n.nodes.Close() // it goes with this process
	n.kvstoremesh.Kill()
	n.local.close()
	n.sources.close()
}

// fillOnDemand writes what can be looked up.
func (n *missNode) fillOnDemand(ctx context.Context, e *etcdProcess) error {
	ctx, cancel := context.WithCancel(ctx)
	writer := etcd.NewWriter(n.config.Log, e.client)
	var run sync.WaitGroup
	run.Go(func() { _ = writer.Run(ctx) }) // it has no error but ctx's
	defer run.Wait()
	defer cancel()
	for _, of := range []struct {
		prefix string
		count  int
		entry  func(int) (string, []byte, error)
	}{
		{wire.OnDemandIdentityPrefix, n.config.Mesh.Identities, n.cluster.identityEntry},
		{wire.OnDemandEndpointPrefix, n.config.Mesh.Endpoints, n.cluster.endpointEntry},
	} {
		if err := fillPrefix(ctx, writer, of.prefix, of.count, of.entry); err != nil {
			return fmt.Errorf("%s: %w", of.prefix, err)
		}
	}
	return nil
}

// fillPrefix writes so many entries, and returns when all are there.
func fillPrefix(ctx context.Context, writer *etcd.Writer, prefix string, count int, entry func(int) (string, []byte, error)) error {
	complete := make(chan struct{})
	scope := writer.Scope(etcd.ScopeConfig{Prefix: prefix, Lease: true, OnComplete: sync.OnceFunc(func() { close(complete) })})
	defer scope.Close()
	ops := make([]etcd.Op, 0, count)
	for i := range count {
		key, value, err := entry(i)
		if err != nil {
			return err
		}
		ops = append(ops, etcd.Op{Key: key, Value: value})
	}
	for chunk := range slices.Chunk(ops, fillChunk) {
		if err := writer.Admit(ctx); err != nil {
			return err
		}
		scope.Apply(chunk)
	}
	scope.Complete()
	select {
	case <-complete:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// missAgent is an agent, and who sends from a pod to what isn't in its map.
type missAgent struct {
	*process.Process
	sender  *missSender
	metrics string
}

// startAgent starts an agent on a map of its own, and waits until it resolves what pod
// sends to, up to room misses at a time: the i-th address is used up for that. pod is to
// have no packet of any other agent's before.
func (n *missNode) startAgent(ctx context.Context, name string, pod *netns.Pod, room, i int, flags ...string) (_ *missAgent, err error) {
	maps := &mapWatch{root: filepath.Join(n.dir, "bpf"), dir: name}
	if err := os.MkdirAll(maps.root, 0o700); err != nil {
		return nil, err
	}
	a := &missAgent{metrics: n.network.address() + ":9962"}
	a.Process, err = process.Start(name, n.dir, n.agent(maps, n.configs, append(flags,
		"--enable-ondemand-resolution", "--ondemand-etcd-config="+n.readThrough, "--ondemand-pod-cidrs="+n.cluster.Name+"="+scanNetwork.String(),
		"--prometheus-serve-addr="+a.metrics, "--enable-k8s=false")...), nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.Kill()
		}
	}()
	alive, stop := whileAlive(ctx, a.Process)
	defer stop()
	target, err := maps.open(alive)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, a.LogTail())
	}
	if a.sender, err = n.sender(pod, target, room); err != nil {
		return nil, err
	}
	one := func(int) wire.Endpoint { return n.cluster.endpointObject(i) }
	if err := a.sender.miss(alive, 1, 1, one, func(time.Duration) {}); err != nil {
		return nil, errors.Join(fmt.Errorf("waiting until %s resolves: %w\n%s", name, err, a.LogTail()), a.sender.close())
	}
	return a, nil
}

// end ends it as a user would.
func (a *missAgent) end() error { return errors.Join(a.sender.close(), a.Stop()) }

// liftedRate is a limit that isn't reached.
const liftedRate = 1_000_000

// agentSettled is how long an agent runs before it is measured: it isn't one that has just
// started, whose garbage goes in the first moment in which it is quiet.
const agentSettled = 3 * time.Second

// misses measures them at a given concurrency.
func (n *missNode) misses(ctx context.Context, f *MissFigures) (err error) {
	pod, err := n.nodes.AddPod("miss", missPod)
	if err != nil {
		return err
	}
	agent, err := n.startAgent(ctx, "agent", pod, n.config.Concurrency, n.config.Misses+n.config.singles(),
		"--ondemand-rate="+strconv.Itoa(liftedRate), "--ondemand-lookup-rate="+strconv.Itoa(liftedRate))
	if err != nil {
		return err
	}
	defer agent.Kill()
	processes := []*process.Process{agent.Process, n.kvstoremesh, n.sources.of(0).Process}
	before, err := cpuOfEach(processes)
	if err != nil {
		return err
	}
	alive, stop := whileAlive(ctx, agent.Process)
	defer stop()
	select {
	case <-time.After(agentSettled):
	case <-alive.Done():
		return fmt.Errorf("%w\n%s", context.Cause(alive), agent.LogTail())
	}
	looks, _, err := agent.sender.watch.Looks()
	if err != nil {
		return err
	}
	latencies, began := follower.NewHistogram(), time.Now()
	if err := agent.sender.miss(alive, n.config.Misses, n.config.Concurrency, n.cluster.endpointObject, func(took time.Duration) {
		follower.Record(latencies, took)
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, agent.LogTail())
	}
	f.Seconds = time.Since(began).Seconds()
	looked, _, err := agent.sender.watch.Looks()
	if err != nil {
		return err
	}
	f.LookEveryMicroseconds = f.Seconds * 1e6 / float64(max(1, looked-looks))
	after, err := cpuOfEach(processes)
	if err != nil {
		return err
	}
	f.latencies = latencies.Export()
	f.Latency, f.Resolved, f.SentAgain = latencyOf(f.latencies), int(latencies.TotalCount()), agent.sender.again
	f.AgentCPUSeconds, f.KVStoreMeshCPUSeconds, f.SourceCPUSeconds =
		(after[0] - before[0]).Seconds(), (after[1] - before[1]).Seconds(), (after[2] - before[2]).Seconds()
	families, err := scrape(ctx, agent.metrics)
	if err != nil {
		return err
	}
	f.Signals, f.RateLimited = int(total(families, metricSignals, "result", "signalled")), int(total(families, metricSignals, "result", "rate-limited"))
	f.ReadThrough = int(total(families, "waggle_ondemand_misses_total", "outcome", "read-through"))
	return agent.end()
}

// cpuOfEach gives the CPU time of each process.
func cpuOfEach(processes []*process.Process) (all []time.Duration, err error) {
	for _, p := range processes {
		cpu, err := p.CPU()
		if err != nil {
			return nil, err
		}
		all = append(all, cpu)
	}
	return all, nil
}

const metricSignals = "waggle_ondemand_signals_total"

// scrape reads a program's metrics.
func scrape(ctx context.Context, address string) (map[string]*dto.MetricFamily, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking for metrics: %w", err)
	}
	defer func() { _, _ = io.Copy(io.Discard, resp.Body); resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	return families, nil
}

// total is that of a counter over what has this label.
func total(families map[string]*dto.MetricFamily, name, label, value string) (n float64) {
	for _, m := range families[name].GetMetric() {
		for _, has := range m.GetLabel() {
			if has.GetName() == label && has.GetValue() == value {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}
