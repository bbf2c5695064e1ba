// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build peers

// Peer-rollout is what "waggle bench rollout" compares with: the side of upstream's
// KVStoreMesh that reads a source, many times in one process. Each is a remote
// cluster of upstream's common.ClusterMesh, which connects and reconnects, with a
// WatchStore for each resource, as upstream's KVStoreMesh has; behind them there is
// nothing.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/bench/rollout"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func main() {
	var opts options
	pflag.StringVar(&opts.configs, "clustermesh-config", "", "Directory of etcd configurations of the source, one for each KVStoreMesh")
	pflag.StringVar(&opts.source, "source", "", "Name of the cluster to read")
	pflag.IntVar(&opts.meshes, "kvstoremeshes", 1, "Number of KVStoreMeshes")
	pflag.StringVar(&opts.differences, "differences", "", "File of the differences to wait for")
	pflag.StringToStringVar(&opts.kvstore, "kvstore-opt", nil, "Options of the etcd clients")
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "peer-rollout:", err)
		os.Exit(1)
	}
}

type options struct {
	configs, source, differences string
	meshes                       int
	kvstore                      map[string]string
}

func run(ctx context.Context, opts options) error {
	tracker, err := rollout.NewTracker(opts.differences, opts.meshes, len(resources), os.Stdout)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	clients := 0
	mesh := common.NewClusterMesh(common.Configuration{
		Logger:      log,
		Config:      common.Config{ClusterMeshConfig: opts.configs},
		ClusterInfo: cmtypes.ClusterInfo{ID: 1, Name: "local", MaxConnectedClusters: 255},
		RemoteClientFactory: common.DefaultRemoteClientFactory(kvstore.Config{
			KVStoreOpt: opts.kvstore, KVStoreLeaseTTL: 15 * time.Minute, KVstoreMaxConsecutiveQuorumErrors: 2,
		}),
		NewRemoteCluster: func(string, common.StatusFunc) common.RemoteCluster { // called under a lock
			clients++
			return newSource(log, tracker, clients-1, opts.source)
		},
		Metrics: common.MetricsProvider("")(),
	})
	if err := mesh.Start(ctx); err != nil {
		return fmt.Errorf("starting the KVStoreMeshes: %w", err)
	}
	defer func() { _ = mesh.Stop(ctx) }() // the process ends
	<-ctx.Done()
	return nil
}

// resources are those that upstream's KVStoreMesh reflects.
var resources = []wire.Resource{wire.Identities, wire.Nodes, wire.Endpoints, wire.Services, wire.ServiceExports}

// source is the remote cluster of one KVStoreMesh.
type source struct {
	name    string
	tracker *rollout.Tracker
	client  int
	factory store.Factory
	stores  map[wire.Resource]store.WatchStore
}

func newSource(log *slog.Logger, tracker *rollout.Tracker, client int, name string) *source {
	s := &source{name: name, tracker: tracker, client: client,
		factory: store.NewFactory(log, store.MetricsProvider()), stores: map[wire.Resource]store.WatchStore{}}
	for _, r := range resources {
		s.stores[r] = s.factory.NewWatchStore(name, store.KVPairCreator, observer{r == wire.Endpoints, tracker, client})
	}
	return s
}

// Run implements common.RemoteCluster, as upstream's KVStoreMesh does.
func (s *source) Run(ctx context.Context, backend kvstore.BackendOperations, config cmtypes.CiliumClusterConfig, ready chan<- error) {
	manager := s.factory.NewWatchStoreManager(backend, s.name)
	for _, r := range resources {
		canary := strings.TrimPrefix(wire.CanaryKey(r, s.name, config.Capabilities.Cached), wire.SyncedPrefix(s.name))
		prefix := strings.TrimSuffix(wire.Prefix(r, s.name, config.Capabilities.Cached), "/")
		listed := func() { s.tracker.Synced(s.client, string(r)) }
		manager.Register(canary, func(ctx context.Context) { s.stores[r].Watch(ctx, told{backend, listed}, prefix) })
	}
	close(ready)
	manager.Run(ctx)
}

// told is a backend that says when a list is done. A WatchStore calls back for
// its first one only.
type told struct {
	kvstore.BackendOperations
	listed func()
}

// ListAndWatch implements store.WatchStoreBackend.
func (b told) ListAndWatch(ctx context.Context, prefix string) kvstore.EventChan {
	out := make(chan kvstore.KeyValueEvent)
	go func() {
		defer close(out)
		for event := range b.BackendOperations.ListAndWatch(ctx, prefix) {
			out <- event // until the channel is closed, a WatchStore reads all
			if event.Typ == kvstore.EventTypeListDone {
				b.listed()
			}
		}
	}()
	return out
}

// Stop implements common.RemoteCluster.
func (s *source) Stop() {}

// Remove implements common.RemoteCluster.
func (s *source) Remove(context.Context) {}

// RevokeCache implements common.RemoteCluster.
func (s *source) RevokeCache(context.Context) {}

// observer tells the tracker what a WatchStore says.
type observer struct {
	endpoints bool
	tracker   *rollout.Tracker
	client    int
}

// OnUpdate implements store.Observer.
func (o observer) OnUpdate(k store.Key) {
	if kv, ok := k.(*store.KVPair); ok && o.endpoints {
		o.tracker.See(o.client, kv.Key, kv.Value, false)
	}
}

// OnDelete implements store.Observer.
func (o observer) OnDelete(k store.NamedKey) {
	if o.endpoints {
		o.tracker.See(o.client, k.GetKeyName(), nil, true)
	}
}
