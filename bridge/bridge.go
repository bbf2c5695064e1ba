// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package bridge brings what is in our tables to upstream's agent, in whose hive they
// are: to its own ipcache, which owns the datapath's map, to its nodes, and to its
// ClusterMesh.
//
//	Table "endpoints" ──── endpoints ────▶ ipcache.IPCache, in batches
//	Table "nodes", local ─ nodes ────────▶ manager.NodeManager
//	Tables of remotes ──── feeds ─ views ▶ ClusterMesh: nodes, identities, services
//
//	bridge.go     what is brought, and the wiring
//	endpoints.go  endpoints → the agent's ipcache
//	entry.go      what an endpoint is there; pure
//	handover.go   an address from a stronger source of ours to a weaker one
//	delays.go     how long the pods of this node take to come back
//	listener.go   what others do in that ipcache, and how much is in it
//	nodes.go      this cluster's nodes → the agent's nodes
//	feed.go       one table → those who follow a cluster in it
//	view.go       the tables of one cluster as upstream's kvstore has them; readonly.go what it lacks
//	clusters.go   the views instead of connections to remote clusters
//
// ClusterMesh takes the views for the etcds of its clusters: what it does about a
// cluster (its ID, its readiness, the start that waits for it, services and what they
// are merged with) it does as ever. Endpoints don't pass through it, since there are so
// many: a value written, and read again, for each would cost as much as all the rest.
package bridge

import (
	"log/slog"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/endpoint/regeneration"
	"github.com/cilium/cilium/pkg/endpointmanager"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/node/manager"
	"github.com/cilium/cilium/pkg/policy"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Options say what is brought.
type Options struct {
	// Local: this cluster's own endpoints and nodes, which the agent doesn't read itself.
	Local bool
	// Remote: remote clusters, which the agent's own ClusterMesh doesn't read itself, and
	// with them what was resolved on demand.
	Remote bool
}

// Cell brings the tables to the agent. It needs Options, our tables, and the hive of
// upstream's agent.
var Cell = cell.Module(
	"bridge",
	"Tables to what the agent has of its own",

	// The views, whether or not ClusterMesh asks for them.
	cell.Provide(newClusters),
	// They are what ClusterMesh connects to.
	cell.DecorateAll(func(upstream common.RemoteClientFactoryFn, c *clusters) common.RemoteClientFactoryFn {
		return c.factory(upstream)
	}),
	// What fills the ipcache, and how full that is.
	cell.ProvidePrivate(provideEndpoints),
	cell.Provide(ipcacheStatus),
	// How many endpoints a cluster has is ours to say.
	cell.DecorateAll(countEndpoints),
	cell.Invoke(registerEndpoints, registerNodes),
)

type params struct {
	cell.In

	Log       *slog.Logger
	Health    cell.Health
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	DB        *statedb.DB
	Options   Options
	Cluster   wire.ClusterInfo
	Writer    *state.Writer
	Mesh      *remote.Mesh
}

// agentParts are what the agent has of its own.
type agentParts struct {
	cell.In

	IPCache   *ipcache.IPCache
	Policy    *policy.Updater
	Endpoints endpointmanager.EndpointManager
}

// provideEndpoints makes what brings endpoints; nil if none are to be brought.
func provideEndpoints(p params, agent agentParts) *endpoints {
	if !p.Options.Local && !p.Options.Remote {
		return nil
	}
	e := newEndpoints(p.Log, p.DB, p.Writer, p.Options, agent.IPCache, agent.Policy, agent.Endpoints)
	e.capacity = p.Health.NewScope("capacity")
	return e
}

// ipcacheStatus is the map's part of a process's status; nil where we don't fill it.
func ipcacheStatus(e *endpoints) status.IPCacheFunc {
	if e == nil {
		return nil
	}
	return e.status
}

// registerEndpoints adds what brings endpoints, if any are to be brought.
func registerEndpoints(p params, fence regeneration.Fence, e *endpoints, c *clusters) {
	if e == nil {
		return
	}
	c.endpoints = e
	if p.Options.Local {
		// Endpoints of the node come back into the datapath once the entries are in the
		// map that it will read. Those of remote clusters ClusterMesh waits for.
		fence.Add("waggle-endpoints", e.waitSynced)
	}
	p.Jobs.Add(
		job.OneShot("endpoints", e.run),
		job.OneShot("capacity", e.reportCapacity),
	)
}

// registerNodes adds what brings this cluster's nodes, if they are to be brought.
func registerNodes(p params, fence regeneration.Fence, manager manager.NodeManager) {
	if !p.Options.Local {
		return
	}
	n := newNodes(p.DB, p.Writer, manager)
	fence.Add("waggle-nodes", n.waitSynced)
	p.Jobs.Add(job.OneShot("nodes", n.run))
}
