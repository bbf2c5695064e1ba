// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waggle-mesh/waggle/bench/process"
)

// Bridge is our cells up to the tables, and the endpoints from there to upstream's
// ipcache.IPCache, as in cilium-agent with --clustermesh-ingest=waggle. There identities and
// nodes go on as well, to upstream's ClusterMesh; here they end in the tables.
const Bridge = "bridge"

// IngestPeers are the names of the peers of an agent: upstream's
// ipcache.IPIdentityWatcher and ipcache.IPCache, without a map, with pages as
// shipped or large ones, and Bridge, without a map as well.
var IngestPeers = []string{Upstream, UpstreamShipped, Bridge}

// ingestLimits are the options of upstream's etcd clients, by peer.
var ingestLimits = map[string][]string{
	Upstream:        {"etcd.limit=50000"},
	UpstreamShipped: nil, // etcd.limit is 256
}

// The file names of the peers' programs.
const (
	ingestProgram = "upstream-ingest"
	bridgeProgram = "bridge-ingest"
)

// Ingest measures how an agent takes in the endpoints, identities and nodes of
// all clusters, from one etcd that has them as a KVStoreMesh would have cached
// them, to its tables and to the kernel's map. Without the right to use BPF the
// error is ipcache.ErrBPFNotPermitted.
// Peers have no map, and take in the endpoints only; Bridge takes in the others up to our
// tables.
func Ingest(ctx context.Context, config Config) (*IngestReport, error) {
	config.Layout, config.CacheEtcds = LayoutCache, 1
	if err := config.Mesh.Validate(); err != nil {
		return nil, err
	}
	if config.Mesh.Endpoints == 0 {
		return nil, errors.New("there must be endpoints")
	}
	watch, err := newMapWatch(config.Log)
	if err != nil {
		return nil, err
	}
	b, err := newBenchmark(config)
	if err != nil {
		return nil, err
	}
	defer b.close()
	subjects := []subject{{name: Waggle, allowed: "as shipped, endpoints, identities and nodes to the BPF map"}}
	programs := map[string]string{}
	for i, name := range config.Peers {
		if !slices.Contains(IngestPeers, name) || slices.Contains(config.Peers[:i], name) {
			return nil, fmt.Errorf("peer %q: must be one or several of %s", name, strings.Join(IngestPeers, ", "))
		}
		path, program, takes := config.PeerProgram, ingestProgram, "endpoints"
		if name == Bridge {
			path, program, takes = "", bridgeProgram, "endpoints to upstream's ipcache, identities and nodes to our tables,"
		}
		if programs[name], err = peerProgram(path, config.Program, program); err != nil {
			return nil, err
		}
		allowed := takes + " without a map, " + strings.Join(append(slices.Clone(ingestLimits[name]), "otherwise as shipped"), ", ")
		subjects = append(subjects, subject{name: name, allowed: allowed})
	}
	head, err := b.head("ingest", subjects)
	if err != nil {
		return nil, err
	}
	sources, err := b.startSources(ctx)
	if err != nil {
		return nil, err
	}
	defer sources.close()
	head.Sources = sources.info
	report := &IngestReport{Head: head}
	b.expect(config.Rounds * len(subjects))
	for n := range config.Rounds {
		for _, s := range subjects {
			b.progress("round %d of %d: %s", n+1, config.Rounds, s.name)
			round := ingest{benchmark: b, sources: sources, watch: watch, name: fmt.Sprintf("%s-%d", s.name, n+1)}
			figures, err := round.measure(ctx, s.name, programs[s.name])
			if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", n+1, s.name, err)
			}
			report.Rounds = append(report.Rounds, IngestRound{Subject: s.name, IngestFigures: figures})
			b.stepDone()
		}
	}
	return report, nil
}

// ingest is one round of one subject.
type ingest struct {
	*benchmark
	sources *sources
	watch   *mapWatch
	name    string
}

// taken says when a subject had everything, and what it had cost until then.
type taken struct {
	at      time.Time
	cpu     time.Duration
	entries int
}

func (r *ingest) measure(ctx context.Context, subject, program string) (f IngestFigures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.config.Timeout, fmt.Errorf("not ready within %s", r.config.Timeout))
	defer cancel()
	argv, wait := r.peer(subject, program)
	if watch := r.watch; subject == Waggle {
		defer func() { err = errors.Join(err, watch.remove()) }()
		argv, wait = r.agent(watch, r.sources.configs), watch.wait
	}
	before, err := r.sources.cpu()
	if err != nil {
		return f, err
	}
	p, err := process.Start(r.name, r.dir, argv, nil)
	if err != nil {
		return f, err
	}
	defer p.Kill()
	sampler := startSampling(p, r.sources.of(0).Process)
	defer sampler.stop()
	alive, stop := whileAlive(ctx, p)
	defer stop()
	all, err := wait(alive, p, r.config.Mesh)
	if err != nil {
		return f, fmt.Errorf("waiting for it to be ready: %w\n%s", err, p.LogTail())
	}
	samples := sampler.stop()
	after, err := r.sources.cpu()
	if err != nil {
		return f, err
	}
	memory, err := p.Memory()
	if err != nil {
		return f, err
	}
	return IngestFigures{
		Entries: all.entries, Seconds: all.at.Sub(p.Began()).Seconds(), CPUSeconds: all.cpu.Seconds(),
		EtcdCPUSeconds: (after - before).Seconds(),
		PeakRSSBytes:   memory.Peak, AnonRSSBytes: memory.Anonymous, FileRSSBytes: memory.File,
		samples: samples[0], etcdSamples: samples[1],
	}, p.Stop()
}

// peer is a peer's command line, and how to wait for it.
func (r *ingest) peer(name, program string) ([]string, func(context.Context, *process.Process, Mesh) (taken, error)) {
	argv := []string{program, "--clustermesh-config=" + r.sources.configs}
	if name == Bridge {
		argv = append(argv, "--cluster-name="+localName, "--cluster-id="+strconv.Itoa(localID), "--datastore=none", "--enable-k8s=false", "--state-dir=",
			fmt.Sprintf("--max-connected-clusters=%d", r.config.Mesh.MaxConnectedClusters()))
	}
	for _, limit := range ingestLimits[name] {
		argv = append(argv, "--kvstore-opt="+limit)
	}
	output := filepath.Join(r.dir, r.name+".log")
	return argv, func(ctx context.Context, p *process.Process, mesh Mesh) (taken, error) {
		return waitSynced(ctx, p, mesh, output)
	}
}

// lookAgain is the time between two looks at a subject.
const lookAgain = 5 * time.Millisecond

// waitSynced waits until a peer has said when it had how many endpoints.
func waitSynced(ctx context.Context, p *process.Process, mesh Mesh, output string) (taken, error) {
	for {
		log, err := os.ReadFile(output)
		if err != nil {
			return taken{}, err
		}
		for line := range strings.Lines(string(log)) {
			var (
				at      int64
				entries int
			)
			if n, _ := fmt.Sscanf(line, "synced %d %d\n", &at, &entries); n != 2 {
				continue
			}
			if want := mesh.Clusters * mesh.Endpoints; entries != want {
				return taken{}, fmt.Errorf("it has %d endpoints of %d", entries, want)
			}
			cpu, err := p.CPU()
			return taken{at: time.Unix(0, at), cpu: cpu, entries: entries}, err
		}
		select {
		case <-ctx.Done():
			return taken{}, context.Cause(ctx)
		case <-time.After(lookAgain):
		}
	}
}
