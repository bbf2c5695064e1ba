// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// shortestTick is the time between two writes, each to the next cluster. At
	// higher rates a write has several events, as that of an exporter has.
	shortestTick = 5 * time.Millisecond
	// writesAtOnce bounds the writes that are under way.
	writesAtOnce = 64
)

// load replaces pods at a steady rate, one endpoint after the other, over all
// clusters. It is open: an event is due at its time, whatever has become of
// those before it, and its latency counts from then.
type load struct {
	mesh    Mesh
	sources *sources
	run     int
	rate    float64
	ledger  *ledger
}

// tickAt is the time between two writes.
func tickAt(rate float64) time.Duration {
	return max(shortestTick, time.Duration(float64(time.Second)/rate))
}

// send sends events for that long. It returns when all were written.
func (l *load) send(ctx context.Context, duration time.Duration) error {
	var writes errgroup.Group
	writes.SetLimit(writesAtOnce)
	next := make([]int, l.mesh.Clusters) // endpoint, by cluster
	tick := tickAt(l.rate)
	began, sent := time.Now(), 0
	for n := 1; time.Duration(n)*tick <= duration; n++ {
		due := began.Add(time.Duration(n) * tick)
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
		count := int(l.rate*(time.Duration(n)*tick).Seconds()+0.5) - sent
		sent += count
		cluster := n % l.mesh.Clusters
		ops, err := l.events(cluster, next, count, due)
		if err != nil {
			return err
		}
		writes.Go(func() error {
			_, err := l.sources.of(cluster).client.Etcd().Txn(ctx).Then(ops...).Commit()
			if err != nil {
				return fmt.Errorf("writing to source %d: %w", cluster+1, err)
			}
			return nil
		})
	}
	return writes.Wait()
}

// events are the writes of so many events of one cluster.
func (l *load) events(cluster int, next []int, count int, due time.Time) ([]clientv3.Op, error) {
	c := l.mesh.Cluster(cluster)
	prefix := wire.Prefix(wire.Endpoints, c.Name, l.sources.info.Layout == LayoutCache)
	var ops []clientv3.Op
	for range count {
		i := next[cluster]
		next[cluster] = (i + 1) % l.mesh.Endpoints
		e := c.endpointObject(i)
		stamp := follower.Stamp{Run: l.run, Number: l.ledger.send(objectOf{cluster, i}, due), Due: due}
		e.Pod = stamp.Pod()
		value, err := wire.MarshalEndpoint(&e)
		if err != nil {
			return nil, err
		}
		ops = append(ops, clientv3.OpPut(prefix+wire.EndpointKey(e.Prefix), string(value), clientv3.WithIgnoreLease()))
	}
	return ops, nil
}
