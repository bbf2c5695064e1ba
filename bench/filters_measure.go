// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// The parts of a benchmark of filters beside those of a mesh.
const (
	partExporter     = "exporter"
	partExporterEtcd = "exporter-etcd"
)

// filterParts are all of them, in the order of reports.
var filterParts = []string{partExporter, partExporterEtcd, partKVStoreMesh, partEtcd, partAgent}

// The phases of a round beside those of a mesh's bootstrap.
const (
	phaseExport  = "export"
	phaseReplace = "churn"
)

// filterEtcds are the etcds by what they are in a report, in its order. The sources
// are all but the exporter's.
var filterEtcds = []string{partExporterEtcd, "sources", partEtcd}

// filterRun is one side of one round.
type filterRun struct {
	*benchmark
	accounts
	config FiltersConfig
	watch  *mapWatch
	world  *filtersWorld
	mesh   Mesh
	side   string
	name   string

	// own is the exporter's etcd, and local the consumer's.
	own, local *etcdProcess
	figures    FilterFigures
}

func newFilterRun(b *benchmark, config FiltersConfig, k *kubernetes, watch *mapWatch, side, name string) *filterRun {
	mesh := config.mesh(side)
	return &filterRun{
		benchmark: b, config: config, watch: watch, mesh: mesh, side: side, name: name,
		world: &filtersWorld{replacements: newReplacements(mesh), filters: config.Filters, kubernetes: k},
	}
}

func (r *filterRun) file(kind string) string { return filepath.Join(r.dir, r.name+"-"+kind) }

func (r *filterRun) progress(doing string) { r.benchmark.progress("%s: %s", r.name, doing) }

func (r *filterRun) measure(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.watch.remove()) }()
	defer r.stopSampling()
	if r.sources, err = r.startSourcesOf(ctx, r.mesh, r.name+"-source"); err != nil {
		return err
	}
	defer r.sources.close()
	r.world.sources = r.sources
	if err := r.world.kubernetes.settle(ctx); err != nil {
		return err
	}
	machine, err := readProcessors()
	if err != nil {
		return err
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	busy, err := readProcessors()
	if err != nil {
		return err
	}
	r.figures.Busy = busy.since(machine)
	r.progress("putting the first pods back")
	return r.world.restore(ctx)
}

// run measures from the start of the exporter on, and leaves no process behind.
func (r *filterRun) run(ctx context.Context) (err error) {
	var processes []*process.Process
	// started ends the others where one ends by itself.
	started := func(p *process.Process) func() {
		processes = append(processes, p)
		alive, stop := whileAlive(ctx, p)
		ctx = alive
		return func() { stop(); p.Kill() }
	}
	own, env, err := r.startLocal(ctx, r.name+"-exporter", &sources{})
	if err != nil {
		return err
	}
	defer own.close()
	r.own = own
	r.add(partExporterEtcd, own.Process)
	exporter, err := r.export(ctx, env)
	if err != nil {
		return err
	}
	defer started(exporter)()

	local, env, err := r.startLocal(ctx, r.name, r.sources)
	if err != nil {
		return err
	}
	defer local.close()
	defer beat(ctx, r.benchmark.config.Log, local)()
	r.local = local
	r.add(partEtcd, local.Process)
	kvstoremesh, err := r.replicate(ctx, env)
	if err != nil {
		return err
	}
	defer started(kvstoremesh)()
	agent, err := r.agent(ctx)
	if err != nil {
		return err
	}
	defer started(agent)()
	if err := r.steady(ctx); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	r.figures.samples, r.figures.Phases = r.keepSamples(), r.phases
	for _, p := range slices.Backward(processes) {
		err = errors.Join(err, p.Stop())
	}
	return err
}

// start starts a part, and accounts to a phase what is used until it is ready.
func (r *filterRun) start(ctx context.Context, phase, part string, argv []string, ready func(context.Context, *process.Process) error) (p *process.Process, err error) {
	r.progress(phase)
	ctx, cancel := context.WithTimeoutCause(ctx, r.benchmark.config.Timeout, fmt.Errorf("not ready within %s", r.benchmark.config.Timeout))
	defer cancel()
	err = r.account(ctx, phase, func() error {
		if p, err = process.Start(r.name+"-"+part, r.dir, argv, nil); err != nil {
			return err
		}
		r.add(part, p)
		alive, stop := whileAlive(ctx, p)
		defer stop()
		if err := ready(alive, p); err != nil {
			return fmt.Errorf("waiting for %s: %w\n%s", part, err, p.LogTail())
		}
		return nil
	})
	if err != nil && p != nil {
		p.Kill()
	}
	return p, err
}

// account is phase, with what etcds have sent to watchers.
func (r *filterRun) account(ctx context.Context, name string, do func() error) error {
	before, err := r.watchEvents(ctx)
	if err != nil {
		return err
	}
	phase, err := r.phase(name, do)
	if err != nil {
		return err
	}
	phase.WatchEvents, err = r.watchEvents(ctx)
	for name := range phase.WatchEvents {
		phase.WatchEvents[name] -= before[name]
	}
	return err
}

// watchEvents asks all etcds that there are.
func (r *filterRun) watchEvents(ctx context.Context) (map[string]int, error) {
	all := map[string]int{}
	for name, etcds := range map[string][]*etcdProcess{filterEtcds[0]: {r.own}, filterEtcds[1]: r.sources.etcds, filterEtcds[2]: {r.local}} {
		for _, e := range etcds {
			if e == nil {
				continue
			}
			n, err := e.watchEvents(ctx)
			if err != nil {
				return nil, err
			}
			all[name] += n
		}
	}
	return all, nil
}

// export has the exporter fill its etcd.
func (r *filterRun) export(ctx context.Context, env environment) (*process.Process, error) {
	k := r.world.kubernetes
	s := exporter(Waggle, r.benchmark.config.Program, k, CEP)
	var canaries []string
	for _, resource := range s.canaries {
		canaries = append(canaries, wire.CanaryKey(resource, k.cluster.Name, false))
	}
	arrival := watchKeys(ctx, r.own.client, wire.StateRoot, r.mesh.KeysPerCluster(), canaries)
	defer arrival.stop()
	flags, _ := r.config.flags(r.side)
	return r.start(ctx, phaseExport, partExporter, append(s.argv(env), flags...), func(ctx context.Context, p *process.Process) error {
		_, err := arrival.wait(ctx)
		r.figures.ExporterReadySeconds = time.Since(p.Began()).Seconds()
		return err
	})
}

// replicate has KVStoreMesh fill the local etcd.
func (r *filterRun) replicate(ctx context.Context, env environment) (*process.Process, error) {
	want, err := r.world.atConsumer()
	if err != nil {
		return nil, err
	}
	keys := r.mesh.exported * r.mesh.Services
	for _, d := range want {
		keys += d.entries
	}
	env.clusterMeshConfig = r.file("clustermesh")
	err = writeConfigs(env.clusterMeshConfig, r.mesh, func(i int) string {
		if i < r.mesh.exported {
			return r.own.url
		}
		return r.sources.of(i).url
	})
	if err != nil {
		return nil, err
	}
	s := waggle(r.benchmark.config.Program)
	arrival := watchCache(ctx, r.local.client, r.mesh, keys, s.canaries)
	defer arrival.stop()
	_, flags := r.config.flags(r.side)
	return r.start(ctx, phaseReplicate, partKVStoreMesh, append(s.argv(env), flags...), func(ctx context.Context, p *process.Process) error {
		_, err := arrival.wait(ctx)
		r.figures.ReadySeconds = time.Since(p.Began()).Seconds()
		return err
	})
}

// agent has an agent fill its map.
func (r *filterRun) agent(ctx context.Context) (*process.Process, error) {
	configs := r.file("agent-clustermesh")
	if err := writeConfigs(configs, r.mesh, func(int) string { return r.local.url }); err != nil {
		return nil, err
	}
	argv := r.benchmark.agent(r.watch, configs, fmt.Sprintf("--bpf-ipcache-map-max=%d", mapCapacity(r.config.Mesh)))
	return r.start(ctx, phaseAgent, partAgent, argv, func(ctx context.Context, p *process.Process) error {
		all, err := r.watch.waitFor(ctx, p, r.world.inMap)
		if err != nil {
			return err
		}
		f := &r.figures
		f.AgentReadySeconds, f.AgentReadyCPUSeconds = all.at.Sub(p.Began()).Seconds(), all.cpu.Seconds()
		f.MapEntries = all.entries
		f.MapBytes, err = r.watch.bytes(ctx)
		return err
	})
}

// steady measures while nothing changes, and while pods are replaced. Between the
// two it counts what there is.
func (r *filterRun) steady(ctx context.Context) (err error) {
	r.progress("no change")
	if err := r.account(ctx, phaseIdle, func() error { return pause(ctx, r.config.Idle) }); err != nil {
		return err
	}
	if err := r.count(ctx); err != nil {
		return err
	}
	r.progress("replacing pods")
	return r.account(ctx, phaseReplace, func() error {
		if r.figures.Changes, err = r.world.send(ctx, r.config.Rate, r.config.Duration); err != nil {
			return err
		}
		return pause(ctx, inClusterTail)
	})
}

// count counts the keys of each etcd.
func (r *filterRun) count(ctx context.Context) error {
	r.figures.Keys = map[string]KeyCounts{}
	for n := range r.mesh.Clusters {
		c := r.mesh.Cluster(n)
		at, client, cached := filterEtcds[1], r.sources.of(n).client, true
		if n < r.mesh.exported {
			at, client, cached = filterEtcds[0], r.own.client, false
		}
		if err := r.countCluster(ctx, at, client, c, cached); err != nil {
			return err
		}
		if err := r.countCluster(ctx, filterEtcds[2], r.local.client, c, true); err != nil {
			return err
		}
	}
	return nil
}

// countCluster adds what an etcd has of one cluster.
func (r *filterRun) countCluster(ctx context.Context, at string, client *etcd.Client, c Cluster, cached bool) error {
	sum := r.figures.Keys[at]
	for prefix, n := range map[string]*int{
		wire.Prefix(wire.Nodes, c.Name, cached): &sum.Nodes, wire.Prefix(wire.Identities, c.Name, cached): &sum.Identities,
		wire.Prefix(wire.Endpoints, c.Name, cached): &sum.Endpoints, wire.Prefix(wire.Services, c.Name, cached): &sum.Services,
		wire.OnDemandEndpointPrefix: &sum.OnDemandEndpoints, wire.OnDemandIdentityPrefix: &sum.OnDemandIdentities,
	} {
		resp, err := client.Etcd().Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return fmt.Errorf("counting %q: %w", prefix, err)
		}
		*n += int(resp.Count)
	}
	r.figures.Keys[at] = sum
	return nil
}
