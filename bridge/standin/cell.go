// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"log/slog"

	"github.com/cilium/cilium/pkg/endpointcleanup"
	identitycell "github.com/cilium/cilium/pkg/identity/cache/cell"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	ciliumv2alpha1 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2alpha1"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/k8s/resource"
	k8stypes "github.com/cilium/cilium/pkg/k8s/types"
	"github.com/cilium/cilium/pkg/k8s/watchers"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// Cell is for the hive of upstream's agent, which has inclustercache.DatastoreCell and
// what fills the tables in it. That the tables reach the agent's ipcache and its nodes,
// and that its endpoints wait for them, is bridge's.
var Cell = cell.Module(
	"standin",
	"Tables instead of watches at the API server",

	cell.Provide(newStandins),

	cell.DecorateAll(func(all watchers.ResourceGroupFunc, s *standins) watchers.ResourceGroupFunc {
		if !s.enabled {
			return all
		}
		return withoutGroups(all)
	}),
	cell.DecorateAll(func(r resource.Resource[*k8stypes.CiliumEndpoint], s *standins) resource.Resource[*k8stypes.CiliumEndpoint] {
		if !s.enabled {
			return r
		}
		return s.endpoints
	}),
	cell.DecorateAll(func(r resource.Resource[*ciliumv2alpha1.CiliumEndpointSlice], s *standins) resource.Resource[*ciliumv2alpha1.CiliumEndpointSlice] {
		if !s.enabled {
			return r
		}
		return s.slices
	}),
	cell.DecorateAll(func(r resource.Resource[*ciliumv2.CiliumNode], s *standins) resource.Resource[*ciliumv2.CiliumNode] {
		if !s.enabled {
			return r
		}
		return s.nodes
	}),
	cell.DecorateAll(func(a identitycell.CachingIdentityAllocator, s *standins) identitycell.CachingIdentityAllocator {
		if !s.enabled {
			return a
		}
		return s.allocator(a)
	}),
	cell.DecorateAll(func(upstream client.Clientset, s *standins) client.Clientset {
		if !s.enabled {
			return upstream
		}
		return s.client(upstream)
	}),
	// It deletes endpoints by their UID, which the tables don't have.
	cell.DecorateAll(withoutCleanup),
)

type params struct {
	cell.In

	Log       *slog.Logger
	Lifecycle cell.Lifecycle
	Jobs      job.Group
	Metrics   workqueue.MetricsProvider
	Datastore inclustercache.DatastoreConfig
	Cluster   wire.ClusterInfo
	DB        *statedb.DB
	Writer    *state.Writer
}

// standins are what the agent has instead of its own watches.
type standins struct {
	// enabled is whether it has them. Otherwise the rest isn't there.
	enabled bool

	db     *statedb.DB
	writer *state.Writer
	tables state.Tables // the Writer's
	jobs   job.Group
	log    *slog.Logger
	stop   context.Context
	// written is what the agent itself has of endpoints.
	written *written

	endpoints resource.Resource[*k8stypes.CiliumEndpoint]
	slices    resource.Resource[*ciliumv2alpha1.CiliumEndpointSlice]
	nodes     resource.Resource[*ciliumv2.CiliumNode]
}

func newStandins(p params) *standins {
	if p.Datastore.Datastore != inclustercache.DatastoreEtcd {
		return &standins{}
	}
	stop, cancel := context.WithCancel(context.Background())
	// Before upstream's Resources stop, which wait for their lists.
	defer p.Lifecycle.Append(cell.Hook{OnStop: func(cell.HookContext) error {
		cancel()
		return nil
	}})
	s := &standins{enabled: true, db: p.DB, writer: p.Writer, tables: p.Writer.Tables(), jobs: p.Jobs, log: p.Log, stop: stop}
	p.Jobs.Add(job.OneShot("await-cluster", s.awaitAll))
	s.written = newWritten(s.db, s.tables.Endpoints)
	local := newLocalPods(s.db, s.tables.Endpoints, s.written)
	p.Jobs.Add(job.OneShot("follow-local-endpoints", local.follow))
	s.endpoints = newEndpointResource(s, &p, ciliumEndpoints, local)
	s.slices = newEndpointResource(s, &p, ciliumEndpointSlices, local)
	s.nodes = resource.New[*ciliumv2.CiliumNode](p.Lifecycle, s.serve(nodeRows(s.db, s.writer, p.Cluster.Name)), p.Metrics,
		resource.WithMetric("CiliumNode"))
	return s
}

// withoutCleanup says at start what it takes away.
func withoutCleanup(cfg endpointcleanup.Config, s *standins, lc cell.Lifecycle) endpointcleanup.Config {
	if !s.enabled || !cfg.EnableStaleCiliumEndpointCleanup {
		return cfg
	}
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		s.log.Info("A flag is set that has no effect", "flag", "--enable-stale-cilium-endpoint-cleanup",
			"reason", "it deletes endpoints by their UID, which the in-cluster cache doesn't have")
		return nil
	}})
	cfg.EnableStaleCiliumEndpointCleanup = false
	return cfg
}

func newEndpointResource[T runtime.Object](s *standins, p *params, f form[T], local *localPods) resource.Resource[T] {
	return &endpointResource[T]{
		Resource: resource.New[T](p.Lifecycle, s.serve(endpointRows(s.db, s.writer, f)), p.Metrics,
			resource.WithMetric(f.metric)),
		writer: s.writer, store: endpointStore[T]{db: s.db, table: s.tables.Endpoints, form: f, local: local},
	}
}

// serve is for one reflector.
func (s *standins) serve(source source) listerWatcher {
	return listerWatcher{&served{source: source, jobs: s.jobs, stop: s.stop}}
}

func (s *standins) allocator(upstream identitycell.CachingIdentityAllocator) *allocator {
	identities := newIdentities(s.log, s.db, s.writer)
	a := &allocator{CachingIdentityAllocator: upstream, served: s.serve(identities).served, identities: identities}
	s.jobs.Add(job.Timer("check-created-identities", a.check, createdInterval))
	return a
}
