// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bytes"
	"context"
	"log/slog"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

// watchReportInterval is how soon health says that the watch fails, or no longer does.
const watchReportInterval = time.Second

// KeptKey keeps one key as it should be: it is written at start, before and
// independently of what it describes, and again whenever it is found to be
// something else. A cluster config is one: without it no remote cluster connects.
type KeptKey struct {
	log         *slog.Logger
	client      *etcd.Client
	writer      *etcd.Writer
	prefix, key string
	value       []byte
	// rewrite asks for the key to be written; written is closed when it was.
	rewrite chan struct{}
	written chan struct{}
}

// NewKeptKey makes a KeptKey of the key below a prefix, which ends in a slash, and
// in which others may have keys of theirs. It does nothing until its Jobs run.
func NewKeptKey(log *slog.Logger, client *etcd.Client, writer *etcd.Writer, prefix, key string, value []byte) *KeptKey {
	return &KeptKey{
		log: log, client: client, writer: writer, prefix: prefix, key: key, value: value,
		rewrite: make(chan struct{}, 1), written: make(chan struct{}),
	}
}

// Jobs writes the key and looks after it, under the given name.
func (k *KeptKey) Jobs(name string) []job.Job {
	return []job.Job{job.OneShot(name, k.write), job.OneShot(name+"-watch", k.watch)}
}

// ask has the key written; many calls before it is are one.
func (k *KeptKey) ask() {
	select {
	case k.rewrite <- struct{}{}:
	default:
	}
}

// write puts the key into etcd at start and each time that it is asked to,
// until ctx ends.
func (k *KeptKey) write(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for the first write")
	for {
		// A new Scope knows nothing of what etcd holds, so it writes in any case;
		// one that has written the key before would take it for a no-op.
		scope := k.writer.Scope(etcd.ScopeConfig{
			Prefix: k.prefix,
			Lease:  true,
			Refill: func([]string) { k.ask() },
		})
		scope.Apply([]etcd.Op{{Key: k.key, Value: k.value}})
		if err := scope.Barrier(ctx); err != nil {
			return nil
		}
		health.OK("Written")
		select {
		case <-k.written:
		default:
			close(k.written)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.rewrite:
			scope.Close()
		}
	}
}

// watch looks for changes that somebody else makes, from the first time on that
// the key was written, until ctx ends.
func (k *KeptKey) watch(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for the first write")
	select {
	case <-ctx.Done():
		return nil
	case <-k.written:
	}
	reader := etcd.NewReader(etcd.ReaderConfig{Log: k.log, Prefix: k.prefix}, k)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return reader.Run(ctx, k.client) })
	group.Go(func() error {
		said := ""
		say := func(text string) {
			if text != said {
				said = text
				health.OK(text)
			}
		}
		tick := time.NewTicker(watchReportInterval)
		defer tick.Stop()
		for {
			switch err := reader.LastError(); {
			case err != nil:
				said = ""
				health.Degraded("Can't see changes by others", err)
			case reader.Synced():
				say("Watching for changes by others")
			default:
				say("Listing")
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return group.Wait()
}

// OnBatch compares what etcd holds with what it should be. The other keys of the
// prefix are none of our business: cluster configs of others are KVStoreMesh's.
func (k *KeptKey) OnBatch(_ context.Context, batch etcd.Batch) {
	for _, event := range batch.Events {
		if event.Key != k.key || (!event.Deleted && bytes.Equal(event.Value, k.value)) {
			continue
		}
		k.log.Warn("A key isn't what it should be, writing it again",
			"key", k.prefix+k.key, "deleted", event.Deleted)
		k.ask()
	}
}
