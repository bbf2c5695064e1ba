// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/waggle-mesh/waggle/bench/rollout"
	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// MeshesConfig is what a benchmark tells a process of many KVStoreMeshes.
type MeshesConfig struct {
	// Configs is a directory with an etcd configuration of the source for each
	// KVStoreMesh, under as many names.
	Configs string
	// Source is the name of the cluster that all of them read.
	Source string
	// Meshes is the number of KVStoreMeshes.
	Meshes int
	// Differences is the file of rollout.Differences.
	Differences string
}

// Register adds the flags.
func (c *MeshesConfig) Register(flags *pflag.FlagSet) {
	flags.StringVar(&c.Configs, "clustermesh-config", "", "Directory of etcd configurations of the source, one for each KVStoreMesh")
	flags.StringVar(&c.Source, "source", "", "Name of the cluster to read")
	flags.IntVar(&c.Meshes, "kvstoremeshes", 1, "Number of KVStoreMeshes")
	flags.StringVar(&c.Differences, "differences", "", "File of the differences to wait for")
}

// listsAtOnce is kvstoremesh's concurrentLists: the lists that one KVStoreMesh
// makes at a time.
const listsAtOnce = 2

// RunMeshes reads a source as so many KVStoreMeshes do. Each is a remote cluster
// with what a KVStoreMesh has on that side, the life of remote clusters and a
// Reader for each resource on a client of its own, and nothing behind the
// Readers. They are in one hive, since each hive would take an inotify instance,
// of which a user has 128. RunMeshes tells out what a rollout.Tracker does, and
// returns nil when ctx ends.
func RunMeshes(ctx context.Context, log *slog.Logger, config MeshesConfig, out io.Writer) (err error) {
	tracker, err := rollout.NewTracker(config.Differences, config.Meshes, len(wire.Resources), out)
	if err != nil {
		return err
	}
	clients := 0
	factory := func(string) remote.Handler { // called from one goroutine
		clients++
		return &sourceReader{log: log, source: config.Source, tracker: tracker, client: clients - 1, lists: semaphore.NewWeighted(listsAtOnce)}
	}
	h := hive.New(
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(etcd.DefaultConfig), // the tuning of clients
		state.Cell,
		remote.Cell,
		cell.Provide(func() remote.Factory { return factory }),
	)
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	for name, value := range map[string]string{"clustermesh-config": config.Configs, "cluster-name": "local", "cluster-id": "1"} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("setting --%s: %w", name, err)
		}
	}
	if err := h.Start(log, ctx); err != nil {
		return fmt.Errorf("starting the KVStoreMeshes: %w", err)
	}
	defer func() { err = errors.Join(err, h.Stop(log, context.WithoutCancel(ctx))) }()
	<-ctx.Done()
	return nil
}

// sourceReader is the remote.Handler of one of them.
type sourceReader struct {
	log     *slog.Logger
	source  string
	tracker *rollout.Tracker
	client  int
	lists   *semaphore.Weighted
	readers []*etcd.Reader // of all resources, once connected
}

// Run implements remote.Handler. As in KVStoreMesh, the Readers stay between
// connections.
func (s *sourceReader) Run(ctx context.Context, conn remote.Connection) error {
	if s.readers == nil {
		for _, r := range wire.Resources {
			s.readers = append(s.readers, etcd.NewReader(etcd.ReaderConfig{
				Log: s.log, Prefix: wire.StatePrefix(r, s.source), Canary: wire.CanaryKey(r, s.source, false), Lists: s.lists,
			}, s.observe(r)))
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, reader := range s.readers {
		group.Go(func() error { return reader.Run(ctx, conn.Client) })
	}
	return group.Wait()
}

// observe tells the tracker what a Reader says.
func (s *sourceReader) observe(r wire.Resource) etcd.ObserverFunc {
	return func(_ context.Context, batch etcd.Batch) {
		if r == wire.Endpoints {
			for _, ev := range batch.Events {
				s.tracker.See(s.client, ev.Key, ev.Value, ev.Deleted)
			}
		}
		if batch.Synced {
			s.tracker.Synced(s.client, string(r))
		}
	}
}

// Revoke implements remote.Handler.
func (s *sourceReader) Revoke(context.Context) {}

// Reset implements remote.Handler.
func (s *sourceReader) Reset(context.Context) {}

// Remove implements remote.Handler.
func (s *sourceReader) Remove(context.Context) {}
