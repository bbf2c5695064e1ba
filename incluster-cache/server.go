// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"log/slog"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"google.golang.org/grpc"

	"github.com/waggle-mesh/waggle/cells/etcd"
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
	cell.Invoke(Config.validate),
	cell.DecorateAll(func(store etcd.Config, cfg Config) etcd.Config { return cfg.Pace(store) }),

	cell.Provide(
		Config.Reads,
		exports,
		permanent,
		listBound,
		serverOptions,
	),

	// cilium/incluster-cache/<name>.
	cell.Invoke(keepCacheConfig),
)

// PrivateServerCell is ServerCell for the module around it alone, in a hive that writes to
// other etcds as well. That module brings the Config, the etcd.Config (see [Config.Pace]),
// and the client and Writer of it; the hive has Kubernetes read what [Config.Reads] says,
// or more.
var PrivateServerCell = cell.Group(
	cell.Invoke(Config.validate),
	cell.ProvidePrivate(
		exports,
		permanent,
		listBound,
		serverOptions,
	),
	cell.Invoke(keepCacheConfig),
)

// exports is what is exported: everything that there is of what is offered.
func exports(cfg Config) export.Options {
	return export.Options{Resources: cfg.offer(), AllNamespaces: true, PushedOnly: true, AllServices: true, NamedPorts: true}
}

// permanent has no key on a lease, whose end would have every agent drop everything: what
// is in force stays in force while the cache is dead and an external etcd isn't. The next
// process takes away what has gone meanwhile.
func permanent() etcd.WriterOptions { return etcd.WriterOptions{Permanent: true} }

// listBound is how many agents list at once.
func listBound(cfg Config) *etcd.ListBound { return etcd.NewListBound(cfg.MaxConcurrentLists) }

func serverOptions(bound *etcd.ListBound) etcd.ServerOptions {
	return etcd.ServerOptions{GRPC: []grpc.ServerOption{bound.ServerOption()}}
}

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
