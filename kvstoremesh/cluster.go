// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// cluster replicates one remote cluster, as its remote.Handler. Readers outlive
// connections, so that a reconnect brings the difference only.
type cluster struct {
	mesh *kvStoreMesh
	name string
	log  *slog.Logger

	// Touched by Handler's methods only, which are called one at a time.
	layout layout
	loaded bool
	// regional: the source is in another region than we are, as far as both are known.
	regional bool
	// noRegion: it was said that the source has none.
	noRegion bool
	replicas []*replica
	reported string // the problem that the row tells of; its writer's

	mu     sync.Mutex
	status status
	dirty  chan struct{}
}

// layout is what decides where the source's keys are, and which are its own.
type layout struct {
	clusterID uint32
	cached    bool
	canaries  bool
}

func newCluster(mesh *kvStoreMesh, name string) *cluster {
	c := &cluster{mesh: mesh, name: name, log: mesh.log.With("cluster", name),
		status: status{Refusals: remote.NewRefusals()}, dirty: make(chan struct{}, 1)}
	return c
}

// changed has the row written, soon.
func (c *cluster) changed() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// Run implements remote.Handler.
func (c *cluster) Run(ctx context.Context, conn remote.Connection) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	if err := c.publishConfig(ctx, conn.RawConfig); err != nil {
		return err
	}
	c.adopt(conn)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { c.report(ctx); return nil })
	for _, r := range c.replicas {
		if !r.enabled {
			continue
		}
		group.Go(func() error {
			if err := r.reader.Run(ctx, conn.Client); err != nil {
				return fmt.Errorf("reading %s: %w", r.resource, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// load learns what an earlier process has left in the local etcd, once.
func (c *cluster) load(ctx context.Context) error {
	if c.loaded {
		return nil
	}
	// A drain of what an earlier process left of this cluster ends first.
	c.mesh.owners.lock(c.name)
	defer c.mesh.owners.unlock(c.name)
	if c.replicas == nil {
		for _, resource := range wire.Resources {
			c.replicas = append(c.replicas, newReplica(c, resource))
		}
	}
	scopes := make([]*etcd.Scope, len(c.replicas))
	for i, r := range c.replicas {
		scopes[i] = r.scope
	}
	load := func(ctx context.Context) error { return c.mesh.writer.LoadScopes(ctx, scopes...) }
	if err := insist(ctx, c.log, load); err != nil {
		return err
	}
	config := func(ctx context.Context) error { return c.mesh.configs.LoadKey(ctx, c.name) }
	if err := insist(ctx, c.log, config); err != nil {
		return err
	}
	c.loaded = true
	return nil
}

// publishConfig writes the source's cluster config, as that of a cache. Agents
// connect when they see it, and wait for the canaries.
func (c *cluster) publishConfig(ctx context.Context, raw []byte) error {
	cached, err := wire.CachedClusterConfig(raw)
	if err != nil {
		return err
	}
	c.mesh.setConfig(c.name, cached)
	return c.mesh.configs.Barrier(ctx)
}

// adopt prepares the Readers for what the cluster config says.
func (c *cluster) adopt(conn remote.Connection) {
	capabilities := conn.Config.Capabilities
	// First: keys that the local etcd loses from now on are read again, or are yet
	// to be read.
	c.mu.Lock()
	for _, r := range c.replicas {
		r.enabled = r.resource != wire.ServiceExports || capabilities.ServiceExportsEnabled != nil
	}
	c.mu.Unlock()
	moved := c.enterRegion(conn.Config.Region)
	next := layout{clusterID: conn.Config.ID, cached: capabilities.Cached, canaries: capabilities.SyncedCanaries}
	if next != c.layout {
		c.layout = next
		budget := &budget{max: c.mesh.config.MaxKeysPerCluster}
		for _, r := range c.replicas {
			budget.keepers = append(budget.keepers, r.scope)
		}
		validator := wire.NewValidator(c.name, next.clusterID, c.mesh.local.MaxConnectedClusters)
		for _, r := range c.replicas {
			r.follow(next, validator, budget)
		}
	} else if moved {
		for _, r := range c.replicas {
			if r.resource == wire.Endpoints {
				r.decideAgain()
			}
		}
	}
	for _, r := range c.replicas {
		if !r.enabled {
			// Nothing belongs there, and readers wait for its canary all the same.
			r.clear(context.Background())
			r.scope.Complete()
		}
	}
	c.changed()
}

// enterRegion takes in which region the source says it is in, and says whether that
// makes a difference to its endpoints. A change of ours comes with a new process,
// which lists everything.
func (c *cluster) enterRegion(region string) (moved bool) {
	ours := c.mesh.config.ClusterRegion
	if region == "" && ours != "" && !c.noRegion {
		c.log.Info("Remote cluster names no region: its endpoints of every scope are taken", "region", ours)
	}
	c.noRegion = region == ""
	regional := filter.Regional(region, ours)
	if moved = regional != c.regional; moved {
		c.log.Info("Deciding which endpoints of remote cluster are taken by their scope",
			"skip-regional", regional, "region", ours, "remote-region", region)
	}
	c.regional = regional
	return moved
}

// Revoke implements remote.Handler: what would send traffic to a cluster that
// has been away for too long goes. The rest stays, upstream's rule as well.
func (c *cluster) Revoke(ctx context.Context) {
	for _, r := range c.replicas {
		if r.reader != nil && (r.resource == wire.Services || r.resource == wire.ServiceExports) {
			c.logError("revoking", r, r.drain(ctx))
		}
	}
	c.writeRow()
}

// Reset implements remote.Handler.
func (c *cluster) Reset(ctx context.Context) {
	// In the order in which consumers can do without: what refers to identities
	// and nodes goes before them.
	for _, r := range slices.Backward(c.replicas) {
		if r.reader != nil {
			c.logError("draining", r, r.drain(ctx))
		}
	}
	c.writeRow()
}

func (c *cluster) logError(doing string, r *replica, err error) {
	if err != nil {
		c.log.Error("Draining cached data of remote cluster failed", "doing", doing, "resource", r.resource, "error", err)
	}
}

// Remove implements remote.Handler. The cluster config goes first, so that no
// agent connects anew; then, after a grace period for those that are, the data.
func (c *cluster) Remove(ctx context.Context) {
	c.removeRow()
	if c.mesh.config.DisableDrainOnDisconnection {
		c.log.Warn("Remote cluster is removed, but the removal of its cached data is disabled")
		c.close()
		return
	}
	if err := c.load(ctx); err != nil {
		// It will be found as an orphan by the next process.
		c.log.Error("Draining cached data of removed cluster failed", "error", err)
		return
	}
	c.mesh.setConfig(c.name, nil)
	if err := c.mesh.grace(ctx, c.name); err == nil {
		for _, r := range slices.Backward(c.replicas) {
			if err = r.scope.Drop(ctx); err != nil {
				break
			}
		}
		if err == nil {
			c.log.Info("Removed the cluster's cached data")
		} else if ctx.Err() == nil {
			c.log.Error("Draining cached data of removed cluster failed", "error", err)
		}
	}
	c.close()
}

func (c *cluster) close() {
	for _, r := range c.replicas {
		r.scope.Close()
	}
}
