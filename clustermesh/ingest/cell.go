// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// initializer is the name under which the tables wait for the remote clusters.
const initializer = "clustermesh"

// Cell provides the Factory that has remote clusters' state taken in to the
// tables, and keeps the tables from counting as initialized until that was done
// for the clusters configured at start.
var Cell = cell.Module(
	"clustermesh-ingest",
	"State of remote clusters from etcd to the tables",

	// --clustermesh-sync-timeout
	cell.Config(DefaultConfig),

	parts,
)

// Parts is Cell without the flag, for a hive that has upstream's one and provides Config.
var Parts = cell.Module(
	"clustermesh-ingest",
	"State of remote clusters from etcd to the tables",

	parts,
)

var parts = cell.Group(
	// Which clusters are still to be waited for.
	cell.Provide(newStartup),
	// What makes the Handler of each remote cluster.
	cell.Provide(newFactory),
	// The tables' initializer.
	cell.Invoke(initializeTables),
)

// Config is ingest's configuration.
type Config struct {
	// ClusterMeshSyncTimeout is how long the tables wait for the remote clusters
	// configured at start before they count as initialized without them.
	ClusterMeshSyncTimeout time.Duration `mapstructure:"clustermesh-sync-timeout"`
}

// DefaultConfig has upstream's timeout.
var DefaultConfig = Config{ClusterMeshSyncTimeout: time.Minute}

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.Duration("clustermesh-sync-timeout", def.ClusterMeshSyncTimeout,
		"Timeout waiting for the initial synchronization of information from remote clusters")
}

func newFactory(log *slog.Logger, writer *state.Writer, local wire.ClusterInfo, startup *Startup) remote.Factory {
	return NewFactory(Options{Log: log, Writer: writer, Local: local, Startup: startup})
}

// startupParams is what keeping the tables uninitialized takes.
type startupParams struct {
	cell.In

	Log     *slog.Logger
	Config  Config
	Jobs    job.Group
	Writer  *state.Writer
	Mesh    *remote.Mesh
	Startup *Startup
}

// initializeTables registers the initializer, and the job that marks it done.
func initializeTables(p startupParams) {
	done := p.Writer.RegisterInitializer(initializer, wire.Resources...)
	p.Jobs.Add(job.OneShot("initial-sync", func(ctx context.Context, health cell.Health) error {
		health.OK("Waiting for the remote clusters that are configured")
		outcome := "The remote clusters that were configured at the start are taken in"
		if err := p.await(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // the process stops
			}
			p.Log.Warn("Going on without remote clusters: connections to them may be disrupted", "error", err)
			// What is wrong with them is told of each.
			outcome = "Went on without remote clusters: " + err.Error()
		}
		tx := p.Writer.Begin()
		done(tx)
		tx.Commit()
		health.OK(outcome)
		return nil
	}))
}

// await waits for the remote clusters, but no longer than the timeout.
func (p *startupParams) await(ctx context.Context) error {
	if !p.Mesh.Enabled() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.Config.ClusterMeshSyncTimeout)
	defer cancel()
	select {
	case <-p.Mesh.Listed():
		p.Startup.Complete()
	case <-ctx.Done():
	}
	return p.Startup.Wait(ctx)
}
