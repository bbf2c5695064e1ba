// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
		// The table "ondemand", which only the engine modifies.
		cell.ProvidePrivate(provideTable),
		cell.Provide(statedb.RWTable[*Row].ToTable),
		cell.Provide(newMetrics),
		cell.ProvidePrivate(func() Opener { return opener }),
		// It works whether anybody asks for it or not.
		cell.Provide(register),
		cell.Invoke(func(*Service) {}),

		cell.Provide(scriptCommands),
	)
}

// InAgent says that the hive is cilium-agent's, and that what the tables have gets into
// that one's map by its own ipcache.
type InAgent bool

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
	InAgent   InAgent               `optional:"true"`
	Resolvers []IPCacheMissResolver `group:"ipcache-miss-resolvers"`
}

// pushed says whether all that a cluster pushes is in the tables.
func (p *params) pushed(cluster string) bool {
	row, _, found := p.Writer.Tables().RemoteClusters.Get(p.DB.ReadTxn(), state.RemoteClusterByName(cluster))
	return found && row.Connected && row.Resources[wire.Endpoints].Synced && row.Resources[wire.Identities].Synced
}

// Service is on-demand resolution in a hive, be it off.
type Service struct {
	with   params
	kernel *kernelSwitch
	health cell.Health
	// chosen is the map for which the kernel's side is open, and failed why it isn't.
	chosen chosenMap
	failed error
	// retry is openRetry.
	retry time.Duration
	// ready has what was resolved before be asked for again.
	ready func()
	// engine is nil where the feature is off.
	engine *engine
	// readThrough is nil where none is configured.
	readThrough *ReadThrough
}

func register(p params) (*Service, error) {
	s := &Service{with: p, kernel: newKernelSwitch(), retry: openRetry}
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
	local := NewLocal(p.Mesh, known)
	resolvers := []IPCacheMissResolver{local}
	if path := p.Config.EtcdConfig; path != "" {
		if s.readThrough, err = NewReadThrough(p.Log, path, known); err != nil {
			return nil, fmt.Errorf("--%s=%q: %w", flagEtcdConfig, path, err)
		}
		resolvers = append(resolvers, s.readThrough)
		local.pushed = p.pushed
	}
	resolvers = append(resolvers, p.Resolvers...)
	s.health = p.Health.NewScope("kernel")
	ready := make(chan struct{})
	s.ready = sync.OnceFunc(func() { close(ready) })
	s.engine, err = newEngine(settings{
		log: p.Log, config: p.Config, db: p.DB, writer: p.Writer, table: p.Table,
		kernel: s.kernel, ready: ready, metrics: p.Metrics, health: p.Health,
		local: p.Cluster.Name, maxConnectedClusters: p.Cluster.MaxConnectedClusters,
		clock: clock.RealClock{}, monotonic: monotonic, flagCIDRs: cidrs,
	}, resolvers)
	if err != nil {
		return nil, err
	}
	p.Metrics.follow(s.engine)
	initialized := p.Writer.RegisterInitializer(initializer, wire.Endpoints)
	restored := func() {
		tx := p.Writer.Begin()
		initialized(tx)
		tx.Commit()
	}
	// Before the jobs, which so begin after it is open, and end before it is closed.
	p.Lifecycle.Append(cell.Hook{
		OnStart: func(cell.HookContext) error { s.open(); return nil },
		OnStop:  func(cell.HookContext) error { return s.stop() },
	})
	e := s.engine
	p.Jobs.Add(
		job.OneShot("resolve", e.run),
		job.OneShot("pod-cidrs", e.followSources),
		job.OneShot("clusters-away", e.reportAway),
		job.OneShot("signals", e.readSignals),
		job.OneShot("expiry", e.expire),
		job.OneShot("restore", e.restart(restored)),
		job.OneShot("interfaces", s.kernel.Interfaces),
		job.OneShot("open", s.keepOpen),
	)
	return s, nil
}

// stop comes after the jobs have ended.
func (s *Service) stop() error {
	err := s.kernel.close(bpf.ErrClosed)
	if s.readThrough != nil {
		err = errors.Join(err, s.readThrough.Close())
	}
	return err
}

// readSignals is the job that reads the kernel's signals.
func (e *engine) readSignals(ctx context.Context, health cell.Health) error {
	for {
		health.OK("Reading what signals there are; kernel tells why there can be none")
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
func (e *engine) reportAway(ctx context.Context, health cell.Health) error {
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
func (e *engine) kernelFailed(err error) {
	if e.complaints.Allow() {
		e.log.Warn("The kernel couldn't be told which addresses are resolved", "error", err)
	}
}

// complaintInterval bounds how often kernelFailed logs.
const complaintInterval = 10 * time.Second

func newComplaints() *rate.Limiter { return rate.NewLimiter(rate.Every(complaintInterval), 1) }
