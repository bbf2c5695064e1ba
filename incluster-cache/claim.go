// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ErrNotOurs says that an etcd isn't one that this cluster's cache may write to.
var ErrNotOurs = errors.New("this etcd is not the in-cluster cache's")

const (
	// claimTimeout bounds the transaction that claims an etcd which answers.
	claimTimeout = 15 * time.Second
	// claimPause is between one that failed and the next.
	claimPause = 200 * time.Millisecond
)

// claim makes an etcd this cluster's cache before anything else is written to it,
// and refuses one that is something else: what the cache holds is unfiltered, and
// it deletes what it doesn't know of. An etcd without anything of Cilium's may be
// claimed, in one transaction; one with a cache config of this cluster was, and
// loses what is no longer offered.
//
// It tries until the etcd has answered, or ctx ends.
func claim(ctx context.Context, log *slog.Logger, client *etcd.Client, cluster string, offer []wire.Resource, value []byte) error {
	key := wire.CacheConfigKey(cluster)
	waiting := func(err error) { log.Warn("Waiting for etcd to answer", "error", err) }
	for {
		_, err := client.WaitReady(ctx, key, waiting)
		if err == nil {
			err = claimOnce(ctx, client, cluster, offer, value)
		}
		switch {
		case err == nil, errors.Is(err, ErrNotOurs):
			return err
		case ctx.Err() != nil, errors.Is(err, etcd.ErrClosed):
			return fmt.Errorf("claiming etcd for the in-cluster cache: %w", err)
		}
		waiting(err)
		select {
		case <-ctx.Done():
		case <-time.After(claimPause):
		}
	}
}

// claimOnce is one attempt, which may be made again if its answer is lost.
func claimOnce(ctx context.Context, client *etcd.Client, cluster string, offer []wire.Resource, value []byte) error {
	key := wire.CacheConfigKey(cluster)
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	first := func(prefix string) clientv3.Op {
		return clientv3.OpGet(prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	}
	resp, err := client.Etcd().Txn(ctx).
		// Of a range it holds if it does for each key: here, if there is none.
		If(clientv3.Compare(clientv3.Version(wire.BasePrefix).WithPrefix(), "=", 0)).
		Then(clientv3.OpPut(key, string(value))).
		Else(
			first(wire.ClusterConfigPrefix),
			first(wire.CacheRoot),
			clientv3.OpGet(wire.CacheConfigPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()),
			first(wire.BasePrefix),
		).Commit()
	if err != nil {
		return err
	}
	if resp.Succeeded {
		return nil
	}
	found := make([][]string, len(resp.Responses))
	for i, answer := range resp.Responses {
		for _, kv := range answer.GetResponseRange().GetKvs() {
			found[i] = append(found[i], string(kv.Key))
		}
	}
	if err := judge(cluster, found[0], found[1], found[2], found[3]); err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(key, string(value))}
	for _, resource := range wire.CacheResources {
		if !slices.Contains(offer, resource) {
			ops = append(ops,
				clientv3.OpDelete(wire.CanaryKey(resource, cluster, false)),
				clientv3.OpDelete(wire.StatePrefix(resource, cluster), clientv3.WithPrefix()))
		}
	}
	if _, err := client.Etcd().Txn(ctx).Then(ops...).Commit(); err != nil {
		return fmt.Errorf("removing from etcd what is no longer offered: %w", err)
	}
	return nil
}

// judge says what an etcd that isn't empty is, by the keys found: cluster configs,
// copies of other clusters' state, cache configs, anything. It is pure.
func judge(cluster string, configs, copies, caches, any []string) error {
	switch {
	case len(configs) > 0:
		return fmt.Errorf("%w: it holds %q, and is read by other clusters as that of a clustermesh-apiserver: "+
			"give the cache one of its own", ErrNotOurs, configs[0])
	case len(copies) > 0:
		return fmt.Errorf("%w: it holds %q, and is that of a KVStoreMesh: give the cache one of its own", ErrNotOurs, copies[0])
	}
	for _, key := range caches {
		if other := strings.TrimPrefix(key, wire.CacheConfigPrefix); other != cluster {
			return fmt.Errorf("%w: it is the cache of cluster %q, and --cluster-name is %q", ErrNotOurs, other, cluster)
		}
	}
	if len(caches) == 0 && len(any) > 0 {
		return fmt.Errorf("%w: it holds %q, which no cache has written: give the cache an empty one", ErrNotOurs, any[0])
	}
	return nil
}
