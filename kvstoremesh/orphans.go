// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// An earlier process may have been stopped before it had removed the data of a
// cluster whose configuration is gone. Its keys may live on: they share leases
// with those of other clusters, which we keep alive. Canaries go last, so that
// each cluster of which something is left has one.

func registerOrphans(m *kvStoreMesh, mesh *remote.Mesh, jobs job.Group) {
	if !mesh.Enabled() || m.config.DisableDrainOnDisconnection {
		return
	}
	jobs.Add(job.OneShot("drain-orphans", func(ctx context.Context, health cell.Health) error {
		health.OK("Waiting for the list of clusters")
		select {
		case <-mesh.Listed():
		case <-ctx.Done():
			return nil
		}
		m.drainOrphans(ctx, health, mesh.Clusters)
		return nil
	}))
}

// drainOrphans removes the data of every cluster that configured doesn't name. How it
// goes with each is in health, in a scope of its own.
func (m *kvStoreMesh) drainOrphans(ctx context.Context, health cell.Health, configured func() []string) {
	health.OK("Looking for data of clusters that are no longer configured")
	var names []string
	look := func(ctx context.Context) (err error) {
		names, err = m.cachedClusters(ctx)
		return err
	}
	if insistent(ctx, m.log, health, "Data of clusters that are no longer configured can't be looked for", look) != nil {
		return // the process stops
	}
	known := configured()
	var drains sync.WaitGroup
	var orphans []string
	for _, name := range names {
		if slices.Contains(known, name) {
			continue
		}
		m.log.Info("Found cached data of a cluster that is no longer configured", "cluster", name)
		orphans = append(orphans, name)
	}
	if len(orphans) == 0 {
		health.OK("There is only data of clusters that are configured")
		return
	}
	health.OK(fmt.Sprintf("Removing the data of %d clusters that are no longer configured", len(orphans)))
	for _, name := range orphans {
		drains.Go(func() { m.drainOrphan(ctx, health.NewScope(name), configured, name) })
	}
	if drains.Wait(); ctx.Err() == nil {
		health.OK(fmt.Sprintf("Done with the data of %d clusters that were no longer configured", len(orphans)))
	}
}

// cachedClusters lists the clusters of which there is cached data.
func (m *kvStoreMesh) cachedClusters(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := m.client.Etcd().Get(ctx, wire.SyncedRoot, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("listing %q: %w", wire.SyncedRoot, err)
	}
	names := make(map[string]struct{})
	for _, kv := range resp.Kvs {
		name, rest, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), wire.SyncedRoot), "/")
		if strings.HasPrefix(rest, wire.CacheRoot) {
			names[name] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// drainOrphan removes a cluster's data unless it is configured by then.
func (m *kvStoreMesh) drainOrphan(ctx context.Context, health cell.Health, configured func() []string, name string) {
	defer health.Stopped("the drain has ended")
	log := m.log.With("cluster", name)
	read := func(ask func(context.Context) error) error {
		return insistent(ctx, log, health, "What is left of the cluster can't be read", ask)
	}
	health.OK("Reading what is left of the cluster")
	config := func(ctx context.Context) error { return m.configs.LoadKey(ctx, name) }
	if read(config) != nil {
		return // the process stops, and the next one finds it again
	}
	if !m.deleteOrphanConfig(name) {
		health.OK("It is configured again")
		return
	}
	health.OK("Waiting for agents to disconnect")
	if m.grace(ctx, name) != nil {
		return
	}
	m.owners.lock(name)
	defer m.owners.unlock(name)
	if slices.Contains(configured(), name) {
		health.OK("It is configured again")
		return // its Handler takes over what is there
	}
	health.OK("Removing what is left of the cluster")
	for _, resource := range slices.Backward(wire.Resources) {
		scope := m.writer.Scope(etcd.ScopeConfig{
			Prefix: wire.CachePrefix(resource, name), Canary: wire.CanaryKey(resource, name, true), Lease: true})
		err := read(scope.Load)
		if err == nil {
			err = scope.Drop(ctx)
		}
		scope.Close()
		if err != nil {
			return
		}
	}
	log.Info("Removed a cluster's cached data")
	health.OK("Removed what was left of the cluster")
}

// grace has the deletion of a cluster's config committed, so that no agent
// connects anew, and waits for those that are connected to leave.
func (m *kvStoreMesh) grace(ctx context.Context, name string) error {
	if err := m.configs.Barrier(ctx); err != nil {
		return err
	}
	m.log.Info("Waiting before removing a cluster's cached data, for agents to disconnect",
		"cluster", name, "duration", m.config.DrainGracePeriod)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(m.config.DrainGracePeriod):
		return nil
	}
}

// owners lets one party at a time work on the cached data of a cluster: its
// Handler, or the drain of what an earlier process left.
type owners struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when let go
}

func (o *owners) lock(name string) {
	for {
		o.mu.Lock()
		held, ok := o.held[name]
		if !ok {
			if o.held == nil {
				o.held = make(map[string]chan struct{})
			}
			o.held[name] = make(chan struct{})
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		<-held
	}
}

func (o *owners) unlock(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.held[name])
	delete(o.held, name)
}
