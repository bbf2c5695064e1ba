// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Peer-mirror is what "waggle bench kvstoremesh --peer mirror" compares with:
// etcd's own mirror maker, one for each prefix of each cluster, in one process. It
// writes as "etcdctl make-mirror" does: of a list one key after the other, of a
// watch a transaction for each revision. It copies keys and nothing else: it
// writes neither canaries nor cluster configs, takes nothing away that it finds,
// and ends when the etcd that it reads is replaced by another.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/mirror"
	clientyaml "go.etcd.io/etcd/client/v3/yaml"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// maxTxnOps is etcdctl's default of --max-txn-ops.
const maxTxnOps = 128

func main() {
	var opts options
	pflag.StringVar(&opts.configs, "clustermesh-config", "", "Directory of etcd configurations, by the name of the cluster")
	pflag.StringVar(&opts.local, "local-config", "", "Configuration of the etcd to write to")
	pflag.BoolVar(&opts.cached, "cached", false, "The sources hold what a KVStoreMesh has cached")
	pflag.IntVar(&opts.healthPort, "health-port", 0, "Port to serve /readyz at; 0 is none")
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "peer-mirror:", err)
		os.Exit(1)
	}
}

type options struct {
	configs, local string
	cached         bool
	healthPort     int
}

// run mirrors all clusters until ctx ends. It is ready once all that was there at
// its start has been copied.
func run(ctx context.Context, opts options) error {
	files, err := os.ReadDir(opts.configs)
	if err != nil {
		return fmt.Errorf("reading the configurations: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	var copied sync.WaitGroup
	for _, file := range files {
		source, err := open(filepath.Join(opts.configs, file.Name()))
		if err != nil {
			return err
		}
		defer source.Close()
		local, err := open(opts.local)
		if err != nil {
			return err
		}
		defer local.Close()
		for _, r := range wire.Resources {
			copied.Add(1)
			m := maker{source: source, local: local,
				from: wire.Prefix(r, file.Name(), opts.cached), to: wire.CachePrefix(r, file.Name())}
			group.Go(func() error { return m.run(ctx, copied.Done) })
		}
	}
	var ready atomic.Bool
	go func() { copied.Wait(); ready.Store(true) }()
	if opts.healthPort != 0 {
		server := &http.Server{Addr: fmt.Sprintf(":%d", opts.healthPort), ReadHeaderTimeout: time.Second,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if !ready.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})}
		group.Go(func() error { <-ctx.Done(); return server.Close() })
		group.Go(func() error {
			if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func open(path string) (*clientv3.Client, error) {
	config, err := clientyaml.NewConfig(path)
	if err != nil {
		return nil, fmt.Errorf("reading etcd configuration %q: %w", path, err)
	}
	client, err := clientv3.New(*config)
	if err != nil {
		return nil, fmt.Errorf("creating etcd client of %q: %w", path, err)
	}
	return client, nil
}

// maker mirrors one prefix.
type maker struct {
	source, local *clientv3.Client
	from, to      string
}

func (m maker) key(key []byte) string { return m.to + string(key[len(m.from):]) }

// run copies what there is, says so, and then what changes.
func (m maker) run(ctx context.Context, copied func()) error {
	syncer := mirror.NewSyncer(m.source, m.from, 0)
	pages, failed := syncer.SyncBase(ctx)
	for page := range pages {
		for _, kv := range page.Kvs {
			if _, err := m.local.Put(ctx, m.key(kv.Key), string(kv.Value)); err != nil {
				return fmt.Errorf("mirroring %q: %w", m.from, err)
			}
		}
	}
	if err := <-failed; err != nil {
		return fmt.Errorf("mirroring %q: %w", m.from, err)
	}
	copied()
	for resp := range syncer.SyncUpdates(ctx) {
		if resp.CompactRevision != 0 {
			return fmt.Errorf("mirroring %q: %w", m.from, rpctypes.ErrCompacted)
		}
		if err := resp.Err(); err != nil {
			return fmt.Errorf("mirroring %q: %w", m.from, err)
		}
		if err := m.apply(ctx, resp.Events); err != nil {
			return fmt.Errorf("mirroring %q: %w", m.from, err)
		}
	}
	return ctx.Err()
}

// apply writes changes, in transactions of one revision each.
func (m maker) apply(ctx context.Context, events []*clientv3.Event) error {
	var ops []clientv3.Op
	var revision int64
	commit := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := m.local.Txn(ctx).Then(ops...).Commit()
		ops = ops[:0]
		return err
	}
	for _, ev := range events {
		if ev.Kv.ModRevision != revision || len(ops) == maxTxnOps {
			if err := commit(); err != nil {
				return err
			}
			revision = ev.Kv.ModRevision
		}
		if ev.Type == clientv3.EventTypeDelete {
			ops = append(ops, clientv3.OpDelete(m.key(ev.Kv.Key)))
		} else {
			ops = append(ops, clientv3.OpPut(m.key(ev.Kv.Key), string(ev.Kv.Value)))
		}
	}
	return commit()
}
