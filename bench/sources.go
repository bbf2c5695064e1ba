// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/process"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// startPatience is how long an etcd has to answer; it takes 0.7 s on an idle
	// machine, and there may be many that start at once.
	startPatience = time.Minute
	// fillsAtOnce is the number of source etcds that are filled at a time.
	fillsAtOnce = 4
	// fillChunk is the number of entries that are queued at a time.
	fillChunk = 1000
	// leaseTTL is longer than any benchmark: the sources' keys are on leases, as
	// an exporter's are, but nobody keeps these alive.
	leaseTTL = 24 * time.Hour
)

// etcdProcess is an etcd in a process of its own, with a client on it.
type etcdProcess struct {
	*process.Process
	url    string
	client *etcd.Client
}

// startEtcd starts an etcd and waits until it answers.
func (b *benchmark) startEtcd(ctx context.Context, name, url string) (*etcdProcess, error) {
	dir := filepath.Join(b.dir, name)
	argv := []string{b.config.Program, "etcd", "--health-port=0", "--log-opt=level=warn"}
	if b.counted {
		argv = []string{b.config.Program, "bench", "etcd", "--socket=" + filepath.Join(b.dir, name+".sock")}
	}
	p, err := process.Start(name, b.dir, append(argv, "--data-dir="+dir, "--listen-client-urls="+url), nil)
	if err != nil {
		return nil, err
	}
	client, err := etcd.NewClient(b.config.Log, etcd.ClientConfig{Endpoints: []string{url}, LeaseTTL: leaseTTL})
	if err != nil {
		p.Kill()
		return nil, err
	}
	e := &etcdProcess{Process: p, url: url, client: client}
	if err := e.waitReady(ctx); err != nil {
		e.close()
		return nil, fmt.Errorf("starting %s: %w\n%s", name, err, e.LogTail())
	}
	return e, nil
}

// network is a loopback network of a benchmark's own: there no other program
// takes a port between its choice and its use, as it happens where the kernel is
// asked for free ones. It is a /16, drawn from those above 127.1.
type network struct{ base netip.Addr }

func newNetwork() *network {
	return &network{base: netip.AddrFrom4([4]byte{127, byte(2 + rand.IntN(250)), byte(rand.IntN(256)), 0})}
}

// address is the network's next address.
func (n *network) address() string {
	n.base = n.base.Next()
	return n.base.String()
}

// url is that of an etcd at the network's next address. The port isn't etcd's
// own, which an etcd of this machine may have taken at all addresses.
func (n *network) url() string { return "http://" + n.address() + ":23790" }

func (e *etcdProcess) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startPatience, fmt.Errorf("%s didn't answer within %s", e.Name(), startPatience))
	defer cancel()
	alive, stop := whileAlive(ctx, e.Process)
	defer stop()
	_, err := e.client.WaitReady(alive, wire.HeartbeatKey, func(error) {})
	return err
}

// close ends the etcd at once: nobody needs its data any more.
func (e *etcdProcess) close() {
	_ = e.client.Close() // the process is killed in any case
	e.Kill()
}

// whileAlive gives a context that ends, with the process's error as its cause,
// when the process does.
func whileAlive(ctx context.Context, p *process.Process) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-p.Done():
			cancel(p.Err())
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(context.Canceled); wait.Wait() }
}

// sources are the etcds of all source clusters.
type sources struct {
	info  SourceInfo
	etcds []*etcdProcess
	// configs is a directory as --clustermesh-config wants it.
	configs string
	// stopBeats ends what writes the heartbeats.
	stopBeats func()
}

// startSources starts and fills the etcds of the source clusters.
func (b *benchmark) startSources(ctx context.Context) (*sources, error) {
	return b.startSourcesOf(ctx, b.config.Mesh, "source")
}

// startSourcesOf does so with a content of their own. name is that of their files.
func (b *benchmark) startSourcesOf(ctx context.Context, mesh Mesh, name string) (_ *sources, err error) {
	s := &sources{configs: filepath.Join(b.dir, name+"-clustermesh"), stopBeats: func() {}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.info = SourceInfo{Layout: b.config.Layout, Etcds: mesh.Clusters, Keys: mesh.Keys()}
	if s.info.Layout == LayoutAuto {
		s.info.Layout = LayoutState
		if mesh.Clusters > autoStateClusters {
			s.info.Layout = LayoutCache
		}
	}
	if s.info.Layout == LayoutCache {
		s.info.Etcds = min(b.config.CacheEtcds, mesh.Clusters)
	}

	b.progress("starting %d %s etcds", s.info.Etcds, name)
	s.etcds = make([]*etcdProcess, s.info.Etcds)
	var start errgroup.Group
	for i := range s.etcds {
		url := b.network.url()
		start.Go(func() (err error) {
			s.etcds[i], err = b.startEtcd(ctx, fmt.Sprintf("%s-etcd-%03d", name, i+1), url)
			return err
		})
	}
	if err := start.Wait(); err != nil {
		return s, err
	}

	b.progress("filling them with %d keys", mesh.Keys())
	began := time.Now()
	if err := writeConfigs(s.configs, mesh, func(i int) string { return s.of(i).url }); err != nil {
		return s, err
	}
	var fill errgroup.Group
	fill.SetLimit(fillsAtOnce)
	sizes := make([]int64, len(s.etcds))
	for i, e := range s.etcds {
		fill.Go(func() (err error) {
			var clusters []Cluster
			for n := i; n < mesh.Clusters; n += len(s.etcds) {
				if n >= mesh.exported {
					clusters = append(clusters, mesh.Cluster(n))
				}
			}
			sizes[i], err = b.fill(ctx, e, clusters, s.info.Layout == LayoutCache)
			return err
		})
	}
	if err := fill.Wait(); err != nil {
		return s, fmt.Errorf("filling the source etcds: %w", err)
	}
	for _, size := range sizes {
		s.info.ValueBytes += size
	}
	s.info.Fill = time.Since(began).Seconds()
	s.stopBeats = beat(ctx, b.config.Log, s.etcds...)
	return s, nil
}

// fill writes whole clusters to one etcd, and returns the bytes of their values.
func (b *benchmark) fill(ctx context.Context, e *etcdProcess, clusters []Cluster, cached bool) (bytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	writer := etcd.NewWriter(b.config.Log, e.client)
	var run sync.WaitGroup
	run.Go(func() { _ = writer.Run(ctx) }) // it has no error but ctx's
	defer run.Wait()
	defer cancel()
	for _, c := range clusters {
		for _, r := range wire.Resources {
			n, err := fillResource(ctx, writer, c, r, cached)
			if err != nil {
				return 0, fmt.Errorf("%s of %s: %w", r, c.Name, err)
			}
			bytes += n
		}
		if err := fillConfig(ctx, e.client, c, cached); err != nil {
			return 0, fmt.Errorf("cluster config of %s: %w", c.Name, err)
		}
	}
	return bytes, nil
}

func fillResource(ctx context.Context, writer *etcd.Writer, c Cluster, r wire.Resource, cached bool) (bytes int64, err error) {
	complete := make(chan struct{})
	scope := writer.Scope(etcd.ScopeConfig{
		Prefix:      wire.Prefix(r, c.Name, cached),
		Canary:      wire.CanaryKey(r, c.Name, cached),
		CanaryValue: func() []byte { return []byte(time.Now().Format(time.RFC3339)) },
		OnComplete:  sync.OnceFunc(func() { close(complete) }),
		Lease:       true,
	})
	defer scope.Close()
	var chunk []etcd.Op
	flush := func() error {
		if err := writer.Admit(ctx); err != nil {
			return err
		}
		scope.Apply(chunk)
		chunk = chunk[:0]
		return nil
	}
	err = c.Entries(r, func(key string, value []byte) error {
		bytes += int64(len(value))
		if chunk = append(chunk, etcd.Op{Key: key, Value: value}); len(chunk) < fillChunk {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return 0, err
	}
	scope.Complete()
	select {
	case <-complete:
		return bytes, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func fillConfig(ctx context.Context, client *etcd.Client, c Cluster, cached bool) error {
	raw, err := wire.MarshalClusterConfig(c.Config())
	if err == nil && cached {
		raw, err = wire.CachedClusterConfig(raw)
	}
	if err != nil {
		return err
	}
	_, err = client.Etcd().Put(ctx, wire.ClusterConfigKey(c.Name), string(raw))
	return err
}

// beat writes heartbeats until it is stopped: a subject that takes longer than
// their interval would drop connections without. The first ones are written
// before it returns.
func beat(ctx context.Context, log *slog.Logger, etcds ...*etcdProcess) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	write := func(now time.Time) {
		for _, e := range etcds {
			if _, err := e.client.Etcd().Put(ctx, wire.HeartbeatKey, now.Format(time.RFC3339)); err != nil && ctx.Err() == nil {
				log.Warn("Writing a heartbeat failed", "etcd", e.Name(), "error", err)
			}
		}
	}
	write(time.Now())
	var run sync.WaitGroup
	run.Go(func() {
		ticker := time.NewTicker(wire.HeartbeatInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				write(now)
			}
		}
	})
	return func() { cancel(); run.Wait() }
}

// of is the etcd of the i-th cluster.
func (s *sources) of(i int) *etcdProcess { return s.etcds[i%len(s.etcds)] }

// cpu is the CPU time of all source etcds.
func (s *sources) cpu() (sum time.Duration, err error) {
	for _, e := range s.etcds {
		cpu, err := e.CPU()
		if err != nil {
			return 0, err
		}
		sum += cpu
	}
	return sum, nil
}

func (s *sources) close() {
	s.stopBeats()
	for _, e := range s.etcds {
		if e != nil {
			e.close()
		}
	}
}
