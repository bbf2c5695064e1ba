// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"log/slog"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ServerCell makes a hive that reads Kubernetes and exports it into the server of
// an in-cluster cache: it decides what is read and exported, and sees to it that
// the etcd is the cache's own. It comes before whatever writes to etcd.
var ServerCell = cell.Module(
	"incluster-cache",
	"What the in-cluster cache offers and to whom",

	// --incluster-cache-resources, …-max-concurrent-lists, …-commit-delay.
	cell.Config(DefaultConfig),
	cell.Invoke(func(cfg Config) error { return cfg.validate() }),
	cell.DecorateAll(func(store etcd.Config, cfg Config) etcd.Config { return cfg.pace(store) }),

	cell.Provide(
		// What is read: of resources that aren't offered, nothing.
		func(cfg Config) kubernetes.Options {
			return kubernetes.Options{Resources: cfg.offer(), Spacing: cfg.spacing()}
		},
		// What is exported: everything that there is of the others.
		func(cfg Config) export.Options {
			return export.Options{Resources: cfg.offer(), AllNamespaces: true, PushedOnly: true, AllServices: true, NamedPorts: true}
		},
		// What is in force stays in force while the cache is dead and an external etcd
		// isn't: no key is on a lease, whose end would have every agent drop everything.
		// The next process takes away what has gone meanwhile.
		func() etcd.WriterOptions { return etcd.WriterOptions{Permanent: true} },
		// How many agents list at once.
		func(cfg Config) *etcd.ListBound { return etcd.NewListBound(cfg.MaxConcurrentLists) },
		func(bound *etcd.ListBound) etcd.ServerOptions {
			return etcd.ServerOptions{GRPC: []grpc.ServerOption{bound.ServerOption()}}
		},
	),

	// cilium/incluster-cache/<name>.
	cell.Invoke(keepCacheConfig),
)

// keepCacheConfig claims the etcd when the hive starts, and keeps the cache config.
func keepCacheConfig(
	log *slog.Logger, lc cell.Lifecycle, jobs job.Group, client *etcd.Client, writer *etcd.Writer,
	cluster wire.ClusterInfo, cfg Config,
) error {
	value, err := wire.MarshalCacheConfig(wire.CacheConfig{ClusterID: cluster.ID, Resources: cfg.offer()})
	if err != nil {
		return err
	}
	lc.Append(cell.Hook{OnStart: func(ctx cell.HookContext) error {
		return claim(ctx, log, client, cluster.Name, cfg.offer(), value)
	}})
	jobs.Add(export.NewKeptKey(log, client, writer, wire.CacheConfigPrefix, cluster.Name, value).Jobs("cache-config")...)
	return nil
}
