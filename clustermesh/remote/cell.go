// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Cell lives the life of remote clusters and tells the Handlers of the hive's
// Factory. Without --clustermesh-config there is no mesh, and it does nothing.
var Cell = cell.Module(
	"remote-clusters",
	"Life of remote clusters",

	// --clustermesh-config and --clustermesh-cache-ttl, as upstream has them.
	cell.Config(Config{}),

	parts,
)

// Parts is Cell without the flags, for a hive that has upstream's clustermesh cell: it
// provides the Config, and may provide the ClusterMetrics.
var Parts = cell.Module(
	"remote-clusters",
	"Life of remote clusters",

	parts,
)

var parts = cell.Group(
	// Whether there is a --clustermesh-config, for those who come before the Mesh.
	cell.Provide(func(cfg Config) Configured { return cfg.ClusterMeshConfig != "" }),
	// The Mesh, for those who want to know which clusters there are.
	cell.Provide(provideMesh),
	// It lives whether or not somebody asks.
	cell.Invoke(func(*Mesh) {}),
)

// Configured says whether there are to be remote clusters.
type Configured bool

type params struct {
	cell.In

	Log       *slog.Logger
	Config    Config
	Etcd      etcd.Config // for its tuning; where to connect is in the directory
	Cluster   wire.ClusterInfo
	Factory   Factory
	Writer    *state.Writer
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Dialer    Dialer                     `optional:"true"`
	Clock     clock.WithDelayedExecution `optional:"true"`
	Metrics   ClusterMetrics             `optional:"true"`
	Sharing   *sharing                   `optional:"true"`
}

func provideMesh(p params) (*Mesh, error) {
	options, err := etcd.ParseOptions(p.Etcd.KVStoreOpt)
	if err != nil {
		return nil, err
	}
	if p.Config.ClusterMeshCacheTTL < 0 {
		return nil, fmt.Errorf("--clustermesh-cache-ttl=%v: must not be negative", p.Config.ClusterMeshCacheTTL)
	}
	cfg := settings{
		log:          p.Log,
		directory:    p.Config.ClusterMeshConfig,
		local:        p.Cluster,
		cacheTTL:     p.Config.ClusterMeshCacheTTL,
		answerLimit:  answerLimit,
		connectLimit: connectLimit,
		clients: newClients(p.Log, p.Sharing != nil, func(path string) (*etcd.Client, error) {
			return etcd.NewClient(p.Log, etcd.ClientConfig{ConfigPath: path, Options: options, Dial: p.Dialer})
		}),
		factory: p.Factory,
		writer:  p.Writer,
		clock:   p.Clock,
		metrics: p.Metrics,
	}
	if cfg.clock == nil {
		cfg.clock = clock.RealClock{}
	}
	if cfg.metrics.TotalRemoteClusters == nil {
		// Counted, and shown nowhere.
		cfg.metrics = newClusterMetrics("")
	}
	mesh := newMesh(cfg, p.Jobs)
	if mesh.Enabled() {
		mesh.register(p.Lifecycle)
	}
	return mesh, nil
}

// register adds what runs. A directory that doesn't exist fails the start.
//
// These two jobs are added before the start, and so stop before the group they
// are in: they may add jobs to it at any time. The jobs of clusters may not,
// since a group that is being stopped waits for them and holds up what adds.
func (m *Mesh) register(lifecycle cell.Lifecycle) {
	var directory *directory
	lifecycle.Append(cell.Hook{
		OnStart: func(cell.HookContext) (err error) {
			directory, err = openDirectory(m.cfg.log, m.cfg.directory, m.cfg.local.Name)
			return err
		},
		OnStop: func(cell.HookContext) error { return directory.close() },
	})
	m.jobs.Add(
		job.OneShot("config-directory", func(ctx context.Context, health cell.Health) error {
			m.follow(ctx, health, directory)
			return nil
		}),
		job.OneShot("readmit-removed", func(ctx context.Context, health cell.Health) error {
			m.readmit(ctx, health)
			return nil
		}),
	)
}
