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
	"Takes remote clusters' state in from etcd",

	// --clustermesh-sync-timeout
	cell.Config(DefaultConfig),
	// Which clusters are still to be waited for.
	cell.Provide(NewStartup),
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

func initializeTables(log *slog.Logger, cfg Config, jobs job.Group, writer *state.Writer, startup *Startup) {
	done := writer.RegisterInitializer(initializer, wire.Resources...)
	jobs.Add(job.OneShot("initial-sync", func(ctx context.Context, _ cell.Health) error {
		missing, err := startup.Wait(ctx, cfg.ClusterMeshSyncTimeout)
		if err != nil {
			return nil // the process stops
		}
		if len(missing) > 0 {
			log.Warn("Remote clusters were not taken in in time: connections to them may be disrupted",
				"clusters", missing, "timeout", cfg.ClusterMeshSyncTimeout)
		}
		tx := writer.Begin()
		done(tx)
		tx.Commit()
		return nil
	}))
}
