// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
)

// verify checks that the exporter's etcd, the consumer's and the agent's map have
// what the rules say, and nothing else. It waits for what is on the way.
func (r *filterRun) verify(ctx context.Context) error {
	r.progress("checking what has arrived")
	ctx, cancel := context.WithTimeoutCause(ctx, r.config.Drain, fmt.Errorf("there were still writes %s after the last change", r.config.Drain))
	defer cancel()
	for _, e := range []*etcdProcess{r.own, r.local} {
		if _, err := waitCalm(ctx, e); err != nil {
			return fmt.Errorf("waiting for %s: %w", e.Name(), err)
		}
	}
	services, err := r.verifyExporter(ctx)
	if err != nil {
		return fmt.Errorf("what has been exported isn't what the rules say: %w", err)
	}
	if err := r.verifyConsumer(ctx, services); err != nil {
		return fmt.Errorf("what has arrived isn't what the rules say: %w", err)
	}
	return r.verifyMap(ctx)
}

// verifyExporter checks the exporter's etcd, and gives the content of its services.
func (r *filterRun) verifyExporter(ctx context.Context) (services digest, err error) {
	c := r.mesh.Cluster(0)
	want, err := r.world.atSource(c)
	if err != nil {
		return services, err
	}
	ofServices := wire.StatePrefix(wire.Services, c.Name)
	prefixes := map[string]struct{}{ofServices: {}}
	for prefix := range want {
		prefixes[prefix] = struct{}{}
	}
	got, err := contentBelow(ctx, r.own.client, r.benchmark.config.Log, wire.StateRoot, prefixes)
	if err != nil {
		return services, err
	}
	services = got[ofServices]
	delete(got, ofServices)
	if services.entries != r.mesh.Services {
		return services, fmt.Errorf("%s has %d entries instead of %d", ofServices, services.entries, r.mesh.Services)
	}
	return services, compare(want, got)
}

// verifyConsumer checks the consumer's etcd.
func (r *filterRun) verifyConsumer(ctx context.Context, services digest) error {
	want, err := r.world.atConsumer()
	if err != nil {
		return err
	}
	if services.entries > 0 {
		want[wire.CachePrefix(wire.Services, r.mesh.Cluster(0).Name)] = services
	}
	got, err := arrived(ctx, r.local.client, r.benchmark.config.Log, r.mesh)
	if err != nil {
		return err
	}
	if err := compare(want, got); err != nil {
		return err
	}
	return checkConfigs(ctx, r.local.client, r.mesh)
}

// verifyMap waits until the agent's map is right. An agent has what its etcd has
// shortly after it.
func (r *filterRun) verifyMap(ctx context.Context) (err error) {
	target, err := r.watch.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	for {
		want, err := r.world.inMap()
		if err != nil {
			return err
		}
		wrong := checkMapExactly(target, want, r.mesh)
		if wrong == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return wrong
		case <-time.After(calmAgain):
		}
	}
}

// checkMapExactly checks that a map has the wanted entries, which it empties want
// of, and no others with an identity of a cluster of the mesh, as pods have them.
func checkMapExactly(m *ebpf.Map, want map[ipcache.Key]uint32, mesh Mesh) error {
	first := wire.IdentityRangeFor(mesh.Cluster(0).ID, mesh.MaxConnectedClusters()).Min
	last := wire.IdentityRangeFor(mesh.Cluster(mesh.Clusters-1).ID, mesh.MaxConnectedClusters()).Max
	var (
		key   ipcache.Key
		value ipcache.Value
		more  int
		one   ipcache.Key
	)
	all := m.Iterate()
	for all.Next(&key, &value) {
		if identity, ok := want[key]; ok && identity == value.Identity {
			delete(want, key)
		} else if value.Identity >= first && value.Identity <= last {
			more++
			one = key
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading the agent's map: %w", err)
	}
	if len(want) > 0 || more > 0 {
		return fmt.Errorf("the agent's map lacks %d entries, and has %d that the rules don't give it (%s is one)", len(want), more, one)
	}
	return nil
}
