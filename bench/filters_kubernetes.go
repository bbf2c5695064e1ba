// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// filtersWorld is what changes in a benchmark of filters: the pods of the first
// cluster in the API server that its exporter reads, those of the others in their
// etcds, as their exporters would write them.
type filtersWorld struct {
	*replacements
	filters    Filters
	kubernetes *kubernetes
	sources    *sources
}

// startFiltersKubernetes starts an API server and fills in the mesh's first cluster:
// as for an exporter's benchmark, and with pods and services.
func (b *benchmark) startFiltersKubernetes(ctx context.Context, program string, mesh Mesh, filters Filters) (_ *kubernetes, err error) {
	k, err := b.startKubernetes(ctx, program, mesh.Cluster(0), mesh.Endpoints)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	b.progress("filling it with %d pods and %d services", mesh.Endpoints, mesh.Services)
	err = createAll(ctx, mesh.Endpoints, func(ctx context.Context, i int) error {
		return k.createPod(ctx, filters, i, k.cluster.endpointObject(i).Pod)
	})
	if err != nil {
		return nil, err
	}
	return k, createAll(ctx, mesh.Services, k.createService)
}

// createPod makes the i-th pod under a name.
func (k *kubernetes) createPod(ctx context.Context, filters Filters, i int, name string) error {
	workload := i % k.cluster.mesh.Identities
	w := k.cluster.workload(workload)
	return k.clients.CreatePod(ctx, w.namespace, name,
		map[string]string{"app.kubernetes.io/name": w.name, "app.kubernetes.io/component": w.tier, "app.kubernetes.io/part-of": w.namespace},
		filters.annotations(k.cluster, workload))
}

// createService makes the i-th service as the mesh has it, but for its address.
func (k *kubernetes) createService(ctx context.Context, i int) error {
	of, err := k.cluster.service(i)
	if err != nil {
		return err
	}
	var backends []netip.Addr
	for backend := range of.Backends {
		addr, err := netip.ParseAddr(backend)
		if err != nil {
			return fmt.Errorf("backend of service %s/%s: %w", of.Namespace, of.Name, err)
		}
		backends = append(backends, addr)
	}
	if err := k.clients.CreateGlobalService(ctx, of.Namespace, of.Name); err != nil {
		return err
	}
	return k.clients.CreateBackends(ctx, of.Namespace, of.Name, backends)
}

// replace replaces the i-th pod of the cluster, and returns once the API server has
// it all: the new pod and its endpoint come before the old ones go, as a rollout has
// it.
func (k *kubernetes) replace(ctx context.Context, filters Filters, i int, before, after wire.Endpoint) error {
	if err := k.createPod(ctx, filters, i, after.Pod); err != nil {
		return err
	}
	if err := k.clients.CreateEndpoint(ctx, &after, k.cluster.identityLabels(i%k.cluster.mesh.Identities)); err != nil {
		return err
	}
	if err := k.clients.DeleteEndpoint(ctx, &before); err != nil {
		return err
	}
	return k.clients.DeletePod(ctx, before.Namespace, before.Pod)
}

// FilterChanges are the pods that were replaced.
type FilterChanges struct {
	// Rate is the number of pods per second over all clusters.
	Rate float64 `json:"rate"`
	// Sent is the number of pods, and Pushed of those whose endpoints are pushed.
	Sent   int `json:"sent"`
	Pushed int `json:"pushed"`
}

// send replaces pods at a rate, one after the other over all clusters, and returns
// when all is written.
func (w *filtersWorld) send(ctx context.Context, rate float64, duration time.Duration) (f FilterChanges, err error) {
	var writes errgroup.Group
	writes.SetLimit(writesAtOnce)
	f.Rate = rate
	next, position := 0, make([]int, w.mesh.Clusters) // the cluster, and the pod of each
	err = everyTick(ctx, tickAt(rate), rate, duration, func(_, count int, _ time.Time) error {
		for range count {
			c := w.mesh.Cluster(next)
			i := position[next]
			position[next]++
			next = (next + 1) % w.mesh.Clusters
			before := w.endpoint(c, i)
			w.gone[objectOf{c.index, i}] = struct{}{}
			after := w.endpoint(c, i)
			f.Sent++
			if c.fate(wire.Endpoints, i) == filter.Pushed {
				f.Pushed++
			} else if c.index >= w.mesh.exported {
				continue // it isn't below a cache's prefix before or after
			}
			writes.Go(func() error { return w.write(ctx, c, i, before, after) })
		}
		return nil
	})
	if wait := writes.Wait(); err == nil {
		err = wait
	}
	return f, err
}

// write replaces one pod.
func (w *filtersWorld) write(ctx context.Context, c Cluster, i int, before, after wire.Endpoint) error {
	if c.index < w.mesh.exported {
		return w.kubernetes.replace(ctx, w.filters, i, before, after)
	}
	value, err := wire.MarshalEndpoint(&after)
	if err != nil {
		return err
	}
	prefix := wire.CachePrefix(wire.Endpoints, c.Name)
	_, err = w.sources.of(c.index).client.Etcd().Txn(ctx).Then(
		clientv3.OpPut(prefix+wire.EndpointKey(after.Prefix), string(value)),
		clientv3.OpDelete(prefix+wire.EndpointKey(before.Prefix)),
	).Commit()
	if err != nil {
		return fmt.Errorf("replacing a pod of %s: %w", c.Name, err)
	}
	return nil
}

// restore gives the first cluster its first pods again, for the next round.
func (w *filtersWorld) restore(ctx context.Context) error {
	var pods []int
	for object := range w.gone {
		if object.cluster < w.mesh.exported {
			pods = append(pods, object.endpoint)
		}
	}
	c := w.mesh.Cluster(0)
	return createAll(ctx, len(pods), func(ctx context.Context, n int) error {
		i := pods[n]
		return w.kubernetes.replace(ctx, w.filters, i, c.replacement(i), c.endpointObject(i))
	})
}
