// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// shortestTick is the time between two writes, each to the next cluster. At
	// higher rates a write has several events, as that of an exporter has.
	shortestTick = 5 * time.Millisecond
	// writesAtOnce bounds the writes that are under way.
	writesAtOnce = 64
)

// load changes objects of one resource at a steady rate, one after the other, over
// all clusters. It is open: an event is due at its time, whatever has become of
// those before it, and its latency counts from then.
type load struct {
	mesh     Mesh
	sources  *sources
	rate     float64
	resource wire.Resource
	// commit is the number of events of each write. They are due one after the
	// other, and written when the last one is. If it is 0, the rate decides, and
	// those of a write are due together.
	commit int
	// next gives the next state of the i-th object of a cluster, and its key below
	// the resource's prefix. Calls come one at a time.
	next func(c Cluster, i int, due time.Time) (key string, value []byte, err error)
}

// tickAt is the time between two writes.
func tickAt(rate float64) time.Duration {
	return max(shortestTick, time.Duration(float64(time.Second)/rate))
}

// validate says why the rate can't be had.
func (l *load) validate() error {
	perWrite, objects := l.rate*tickAt(l.rate).Seconds(), l.mesh.generated()[l.resource]
	if l.rate <= 0 {
		return errors.New("the rate must be positive")
	}
	if perWrite > float64(objects) {
		return fmt.Errorf("%.0f events in a write are more than the %d %s of a cluster", perWrite, objects, l.resource)
	}
	return nil
}

// send sends events for that long. It returns when all were written.
func (l *load) send(ctx context.Context, duration time.Duration) error {
	var writes errgroup.Group
	writes.SetLimit(writesAtOnce)
	position := make([]int, l.mesh.Clusters) // of the next object, by cluster
	tick := tickAt(l.rate)
	if l.commit > 0 {
		tick = time.Duration(float64(l.commit) * float64(time.Second) / l.rate)
	}
	err := everyTick(ctx, tick, l.rate, duration, func(n, count int, due time.Time) error {
		cluster := n % l.mesh.Clusters
		ops, err := l.events(cluster, position, count, due)
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
		return nil
	})
	return errors.Join(err, writes.Wait())
}

// everyTick calls write after each tick of the duration, with the number of the
// tick, from 1 on, and of the events that are due by then and weren't before.
// Calls come at their times, or as soon after as the last one has returned. It
// ends at write's first error.
func everyTick(ctx context.Context, tick time.Duration, rate float64, duration time.Duration, write func(n, count int, due time.Time) error) error {
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
		count := int(rate*(time.Duration(n)*tick).Seconds()+0.5) - sent
		sent += count
		if err := write(n, count, due); err != nil {
			return err
		}
	}
	return nil
}

// events are the writes of so many events of one cluster.
func (l *load) events(cluster int, position []int, count int, due time.Time) ([]clientv3.Op, error) {
	c, objects := l.mesh.Cluster(cluster), l.mesh.generated()[l.resource]
	prefix := wire.Prefix(l.resource, c.Name, l.sources.info.Layout == LayoutCache)
	var ops []clientv3.Op
	for n := range count {
		i := position[cluster]
		position[cluster] = (i + 1) % objects
		due := due
		if l.commit > 0 {
			due = due.Add(-time.Duration(float64(count-1-n) * float64(time.Second) / l.rate))
		}
		key, value, err := l.next(c, i, due)
		if err != nil {
			return nil, err
		}
		ops = append(ops, clientv3.OpPut(prefix+key, string(value), clientv3.WithIgnoreLease()))
	}
	return ops, nil
}
