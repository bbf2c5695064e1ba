// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build peers

// Peer-ingest is what "waggle bench ingest" compares with: upstream's way from
// etcd into an agent, its ipcache.IPIdentityWatcher for each cluster and one
// ipcache.IPCache. It has neither nodes nor identities nor a BPF map.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/source"
	"github.com/spf13/pflag"
)

func main() {
	configs := pflag.String("clustermesh-config", "", "Directory of etcd configurations, by the name of the cluster")
	opts := pflag.StringToString("kvstore-opt", nil, "Options of the etcd clients")
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *configs, *opts); err != nil {
		fmt.Fprintln(os.Stderr, "peer-ingest:", err)
		os.Exit(1)
	}
}

// run takes in all clusters, says so on standard output, and waits for ctx.
func run(ctx context.Context, configs string, opts map[string]string) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	files, err := os.ReadDir(configs)
	if err != nil {
		return fmt.Errorf("reading the configurations: %w", err)
	}
	cache := ipcache.NewIPCache(&ipcache.Configuration{Context: ctx, Logger: log})
	defer func() { err = errors.Join(err, cache.Shutdown()) }()
	factory := store.NewFactory(log, store.MetricsProvider())
	var watchers []*ipcache.IPIdentityWatcher
	for _, file := range files {
		clientOpts := map[string]string{kvstore.EtcdOptionConfig: filepath.Join(configs, file.Name())}
		for key, value := range opts {
			clientOpts[key] = value
		}
		// As the agent's clients of remote clusters are made.
		backend, failed := kvstore.NewClient(ctx, log, kvstore.EtcdBackendName, clientOpts,
			kvstore.ExtraOptions{NoLockQuorumCheck: true, ClusterName: file.Name()})
		watcher := ipcache.NewIPIdentityWatcher(log, file.Name(), cache, factory, source.ClusterMesh)
		watchers = append(watchers, watcher)
		go func() {
			if err, ok := <-failed; ok && err != nil {
				log.Error("Connecting failed", "cluster", file.Name(), "error", err)
				return
			}
			watcher.Watch(ctx, backend, ipcache.WithCachedPrefix(true))
		}()
	}
	var entries uint64
	for _, watcher := range watchers {
		if err := watcher.WaitForSync(ctx); err != nil {
			return err
		}
		entries += watcher.NumEntries()
	}
	fmt.Printf("synced %d %d\n", time.Now().UnixNano(), entries)
	<-ctx.Done()
	return nil
}
