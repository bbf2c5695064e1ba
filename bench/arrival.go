// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// arrival tells when the local etcd is complete: when it has each canary of each
// cluster, and as many keys as all sources together. It follows the canaries
// only. To follow all keys would cost the etcd as much as another agent does,
// and take the processor from what is measured.
type arrival struct {
	client  *etcd.Client
	root    string // of the keys
	keys    int
	missing map[string]struct{} // canaries
	watch   clientv3.WatchChan
	cancel  context.CancelFunc
	// first and last are when the first and the last canary were there; zero
	// where there are none.
	first, last time.Time
}

const (
	// recount is the time between two counts where the canaries came before the
	// keys, or there are none.
	recount = 5 * time.Millisecond
	// recountShare is how many times longer than a count the pause after it is at
	// least: etcd goes over all keys to count them.
	recountShare = 20
)

// watchArrival begins to watch, before the subject is started, for what a
// KVStoreMesh writes.
func watchArrival(ctx context.Context, client *etcd.Client, mesh Mesh, resources []wire.Resource) *arrival {
	return watchCache(ctx, client, mesh, mesh.Keys(), resources)
}

// watchCache is watchArrival of so many keys of the mesh's clusters.
func watchCache(ctx context.Context, client *etcd.Client, mesh Mesh, keys int, resources []wire.Resource) *arrival {
	var canaries []string
	for i := range mesh.Clusters {
		for _, r := range resources {
			canaries = append(canaries, wire.CanaryKey(r, mesh.Cluster(i).Name, true))
		}
	}
	return watchKeys(ctx, client, wire.CacheRoot, keys, canaries)
}

// watchKeys begins to watch for so many keys below a root, and for canaries.
func watchKeys(ctx context.Context, client *etcd.Client, root string, keys int, canaries []string) *arrival {
	a := &arrival{client: client, root: root, keys: keys, missing: map[string]struct{}{}}
	for _, canary := range canaries {
		a.missing[canary] = struct{}{}
	}
	ctx, a.cancel = context.WithCancel(ctx)
	a.watch = client.Etcd().Watch(ctx, wire.SyncedRoot, clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithFilterDelete())
	return a
}

func (a *arrival) stop() { a.cancel() }

// wait waits until the local etcd is complete and gives the number of its keys.
// It is an error if there are more than the sources have.
func (a *arrival) wait(ctx context.Context) (keys int, err error) {
	for len(a.missing) > 0 {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w (%d canaries are missing)", context.Cause(ctx), len(a.missing))
		case resp, ok := <-a.watch:
			if err := resp.Err(); err != nil || !ok {
				return 0, fmt.Errorf("watching %q: %w", wire.SyncedRoot, errors.Join(err, ctx.Err()))
			}
			if a.last = time.Now(); a.first.IsZero() {
				a.first = a.last
			}
			for _, ev := range resp.Events {
				delete(a.missing, string(ev.Kv.Key))
			}
		}
	}
	for {
		began := time.Now()
		resp, err := a.client.Etcd().Get(ctx, a.root, clientv3.WithPrefix(), clientv3.WithCountOnly())
		switch {
		case err != nil:
			return 0, fmt.Errorf("counting %q: %w", a.root, err)
		case resp.Count == int64(a.keys):
			return a.keys, nil
		case resp.Count > int64(a.keys):
			return 0, fmt.Errorf("there are %d keys below %q, more than the %d of the sources", resp.Count, a.root, a.keys)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w (%d of %d keys are there)", context.Cause(ctx), resp.Count, a.keys)
		case <-time.After(max(recount, recountShare*time.Since(began))):
		}
	}
}
