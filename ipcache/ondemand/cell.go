// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"golang.org/x/time/rate"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

const (
	// initializer is the name under which the table of endpoints waits for what an
	// earlier process had resolved.
	initializer = "ondemand"
	// upstreamMap is where cilium-agent pins its ipcache map, below --bpf-root.
	upstreamMap = "tc/globals/cilium_ipcache_v2"
	// directory is where our maps and links are pinned, below the agent's directory.
	directory = "ondemand"
	// readRetry is when signals are read again after that has failed.
	readRetry = time.Second
)

// NewCell resolves addresses of remote pods that the ipcache map doesn't know, if
// --enable-ondemand-resolution says so; otherwise it has removed from the kernel what an
// earlier process has left there.
//
// A hive may have resolvers of its own, in the group "ipcache-miss-resolvers": they are
// asked after the shipped ones.
func NewCell(opener Opener) cell.Cell {
	return cell.Module(
		"ondemand",
		"Misses in the ipcache map to endpoints in the tables",

		// --enable-ondemand-resolution and --ondemand-…
		cell.Config(DefaultConfig),
		// The table "ondemand", which only the Engine modifies.
		cell.ProvidePrivate(newTable),
		cell.Provide(statedb.RWTable[*Row].ToTable),
		cell.Provide(newMetrics),
		cell.ProvidePrivate(func() Opener { return opener }),
		// It works whether anybody asks for it or not.
		cell.Provide(register),
		cell.Invoke(func(*Service) {}),

		cell.Provide(scriptCommands),
	)
}

type params struct {
	cell.In

	Log       *slog.Logger
	Health    cell.Health
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	DB        *statedb.DB
	Config    Config
	Cluster   wire.ClusterInfo
	Writer    *state.Writer
	Mesh      *remote.Mesh
	Table     statedb.RWTable[*Row]
	Metrics   *Metrics
	Opener    Opener
	Map       *ipcache.Datapath
	MapConfig ipcache.Config
	Resolvers []IPCacheMissResolver `group:"ipcache-miss-resolvers"`
}

// Service is on-demand resolution in a hive, be it off.
type Service struct {
	with   params
	kernel kernelSwitch
	// engine is nil where the feature is off.
	engine *Engine
	// readThrough is nil where none is configured.
	readThrough *ReadThrough
}

func register(p params) (*Service, error) {
	s := &Service{with: p}
	if !p.Config.Enable {
		p.Lifecycle.Append(cell.Hook{OnStart: func(cell.HookContext) error { return s.remove() }})
		return s, nil
	}
	cidrs, err := p.Config.validate()
	if err != nil {
		return nil, err
	}
	// With a KVStoreMesh the local etcd is its, and what is remote is asked through it.
	known := (&tablesResolver{p.DB, p.Writer.Tables().Endpoints, p.Writer.Tables().Identities}).hasIdentity
	resolvers := []IPCacheMissResolver{NewLocal(p.Mesh, known)}
	if path := p.Config.EtcdConfig; path != "" {
		if s.readThrough, err = NewReadThrough(p.Log, path, known); err != nil {
			return nil, fmt.Errorf("--%s=%q: %w", flagEtcdConfig, path, err)
		}
		resolvers = append(resolvers, s.readThrough)
	}
	resolvers = append(resolvers, p.Resolvers...)
	s.engine, err = newEngine(settings{
		log: p.Log, config: p.Config, db: p.DB, writer: p.Writer, table: p.Table,
		kernel: &s.kernel, metrics: p.Metrics, health: p.Health,
		local: p.Cluster.Name, maxConnectedClusters: p.Cluster.MaxConnectedClusters,
		clock: clock.RealClock{}, monotonic: monotonic, flagCIDRs: cidrs,
	}, resolvers)
	if err != nil {
		return nil, err
	}
	p.Metrics.engine = s.engine
	restored := p.Writer.RegisterInitializer(initializer, wire.Endpoints)
	p.Lifecycle.Append(cell.Hook{
		OnStart: func(cell.HookContext) error {
			s.start(func() {
				tx := p.Writer.Begin()
				restored(tx)
				tx.Commit()
			})
			return nil
		},
		OnStop: func(cell.HookContext) error { return s.stop() },
	})
	return s, nil
}

// dir is where our pins are. Only whose map is in the kernel, and who has locked the
// directory with it, may touch what is there.
func (s *Service) dir() (dir string, ours bool) {
	if pin, ok := s.with.Map.PinPath(); ok {
		return filepath.Join(filepath.Dir(pin), directory), true
	}
	return filepath.Join(s.with.MapConfig.BPFRoot, s.with.MapConfig.BPFMapDir, directory), false
}

// remove takes away what an earlier process has left, where this one is its successor.
func (s *Service) remove() error {
	dir, ours := s.dir()
	if !ours {
		return nil
	}
	if err := s.with.Opener.Remove(s.with.Log, dir); err != nil {
		// It is a burden, and no reason for not working.
		s.with.Log.Warn("On-demand resolution is off, and what an earlier process has left of it can't be removed", "error", err)
		s.with.Health.NewScope("kernel").Degraded("Programs of an earlier process are left", err)
	}
	return nil
}

// ipcacheMap is the map that the programs read.
func (s *Service) ipcacheMap() (string, error) {
	if s.with.Config.IPCacheMap != "" {
		return s.with.Config.IPCacheMap, nil
	}
	path := filepath.Join(s.with.MapConfig.BPFRoot, upstreamMap)
	switch _, err := os.Stat(path); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("looking for the map of cilium-agent: %w", err)
	}
	if path, ok := s.with.Map.PinPath(); ok {
		return path, nil
	}
	return "", fmt.Errorf("%w: the ipcache map isn't in the kernel, and --%s names no other", bpf.ErrUnsupported, flagIPCacheMap)
}

// start opens the kernel's side and adds the jobs. Where the kernel can't, health says
// so, and everything else works: addresses can be resolved by hand.
func (s *Service) start(restored func()) {
	health := s.with.Health.NewScope("kernel")
	if opened, err := s.open(); err != nil {
		s.with.Log.Warn("No signals of misses in the ipcache map: nothing is resolved by itself", "error", err)
		health.Degraded("There are no signals of misses", err)
	} else {
		s.kernel.opened.Store(&opened)
		health.OK("Signals of misses are given")
		s.with.Jobs.Add(job.OneShot("interfaces", opened.Interfaces))
	}
	e := s.engine
	s.with.Jobs.Add(
		job.OneShot("resolve", e.run),
		job.OneShot("pod-cidrs", e.followSources),
		job.OneShot("clusters-away", e.reportAway),
		job.OneShot("signals", e.readSignals),
		job.OneShot("expiry", e.expire),
		job.OneShot("restore", e.restart(restored)),
	)
}

func (s *Service) open() (Opened, error) {
	path, err := s.ipcacheMap()
	if err != nil {
		return Opened{}, err
	}
	dir, _ := s.dir()
	return s.with.Opener.Open(s.with.Log, bpf.Config{
		Dir:         dir,
		IPCacheMap:  path,
		Interval:    s.with.Config.Interval,
		Rate:        s.with.Config.Rate,
		Burst:       s.with.Config.Rate, // what a second may have, it may have at once
		MaxFollowed: s.with.Config.MaxEntries,
	}, s.with.Config.Interfaces, s.with.Config.Devices)
}

// stop comes after the jobs have ended.
func (s *Service) stop() (err error) {
	if opened := s.kernel.opened.Swap(nil); opened != nil {
		err = opened.Close()
	}
	if s.readThrough != nil {
		err = errors.Join(err, s.readThrough.Close())
	}
	return err
}

// readSignals is the job that reads the kernel's signals.
func (e *Engine) readSignals(ctx context.Context, health cell.Health) error {
	for {
		health.OK("Reading signals")
		err := e.kernel.Read(ctx, e.handle)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("they have ended")
		}
		e.log.Warn("Reading signals of misses failed", "error", err)
		health.Degraded("Signals of misses can't be read", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(readRetry):
		}
	}
}

// reportAway is the job that says in health which clusters are left alone.
func (e *Engine) reportAway(ctx context.Context, health cell.Health) error {
	for {
		away := map[string][]string{}
		for _, r := range e.chain.others {
			if clusters := r.away(); len(clusters) > 0 {
				away[r.Name()] = clusters
			}
		}
		if len(away) > 0 {
			health.Degraded("Clusters are left alone for a while, since lookups have failed", fmt.Errorf("by resolver: %v", away))
		} else {
			health.OK("All clusters can be asked")
		}
		// A pause ends by itself, which nobody tells of.
		var over <-chan time.Time
		if len(away) > 0 {
			over = time.After(e.breakerPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.changed:
		case <-over:
		}
	}
}

// kernelFailed takes note of what the kernel didn't do. Nothing depends on it: the entry
// of an address that isn't followed goes after its time, and comes back with the next
// packet.
func (e *Engine) kernelFailed(err error) {
	if e.complaints.Allow() {
		e.log.Warn("The kernel couldn't be told which addresses are resolved", "error", err)
	}
}

// complaintInterval bounds how often kernelFailed logs.
const complaintInterval = 10 * time.Second

func newComplaints() *rate.Limiter { return rate.NewLimiter(rate.Every(complaintInterval), 1) }
