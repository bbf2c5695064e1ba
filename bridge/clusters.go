// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// connectionPause is between two looks for a connection that is about to be there: its
// row in the table says so a moment earlier.
const connectionPause = 50 * time.Millisecond

// errOtherConfig is why ClusterMesh is to take another view.
var errOtherConfig = errors.New("the cluster has another config")

// clusters are the views of remote clusters.
type clusters struct {
	log     *slog.Logger
	db      *statedb.DB
	tables  state.Tables
	mesh    *remote.Mesh
	options Options

	nodes      *feed[*state.Node]
	identities *feed[*state.Identity]
	services   *feed[*state.Service]
	// endpoints is nil where none are brought.
	endpoints *endpoints
}

func newClusters(p params) *clusters {
	c := &clusters{log: p.Log, db: p.DB, tables: p.Writer.Tables(), mesh: p.Mesh, options: p.Options}
	if !p.Options.Remote {
		return c
	}
	c.nodes = newFeed(c.db, c.tables.Nodes,
		func(n *state.Node) string { return n.Cluster }, func(n *state.Node) string { return n.Name },
		func(txn statedb.ReadTxn, cluster string) iter.Seq2[*state.Node, statedb.Revision] {
			return c.tables.Nodes.Prefix(txn, state.NodesByCluster(cluster))
		})
	c.identities = newFeed(c.db, c.tables.Identities,
		func(i *state.Identity) string { return i.Origin.Cluster }, func(i *state.Identity) string { return wire.IdentityKey(i.ID) },
		func(txn statedb.ReadTxn, cluster string) iter.Seq2[*state.Identity, statedb.Revision] {
			return c.tables.Identities.List(txn, state.IdentitiesByCluster(cluster))
		})
	c.services = newFeed(c.db, c.tables.Services,
		func(s *state.Service) string { return s.Cluster }, func(s *state.Service) string { return wire.ServiceKey(s.Namespace, s.Name) },
		func(txn statedb.ReadTxn, cluster string) iter.Seq2[*state.Service, statedb.Revision] {
			return c.tables.Services.Prefix(txn, state.ServicesByCluster(cluster))
		})
	p.Jobs.Add(
		job.OneShot("view-nodes", c.nodes.run),
		job.OneShot("view-identities", c.identities.run),
		job.OneShot("view-services", c.services.run),
	)
	return c
}

// factory gives ClusterMesh a view where it would connect. The configuration of a cluster
// has its name.
func (c *clusters) factory(upstream common.RemoteClientFactoryFn) common.RemoteClientFactoryFn {
	if !c.options.Remote {
		return upstream
	}
	return func(ctx context.Context, log *slog.Logger, path string, _ kvstore.ExtraOptions) (kvstore.BackendOperations, chan error) {
		v := &view{log: log, of: c, cluster: filepath.Base(path), failed: make(chan error, 1)}
		v.ctx, v.close = context.WithCancel(ctx)
		ready := make(chan error, 1)
		v.begin(func() { v.live(ready) })
		return v, ready
	}
}

// live waits for the cluster's config, says so, and then for another one.
func (v *view) live(ready chan<- error) {
	conn, err := v.connection(func(remote.Connection) bool { return true })
	if err == nil {
		v.config, err = configOf(conn)
		v.layout = conn.Config.Capabilities.Cached
	}
	if err != nil {
		ready <- fmt.Errorf("waiting for cluster %q: %w", v.cluster, err)
		return
	}
	close(ready)
	if _, err := v.connection(func(now remote.Connection) bool { return !bytes.Equal(now.RawConfig, conn.RawConfig) }); err == nil {
		v.failed <- errOtherConfig
	}
}

// connection waits for one that is good.
func (v *view) connection(good func(remote.Connection) bool) (remote.Connection, error) {
	for {
		row, _, changed, found := v.of.tables.RemoteClusters.GetWatch(v.of.db.ReadTxn(), state.RemoteClusterByName(v.cluster))
		conn, ok := v.of.mesh.Connection(v.cluster)
		if ok && good(conn) {
			return conn, nil
		}
		var soon <-chan time.Time
		if found && row.Connected && !ok {
			soon = time.After(connectionPause)
		}
		select {
		case <-v.ctx.Done():
			return remote.Connection{}, v.ctx.Err()
		case <-changed:
		case <-soon:
		}
	}
}

// configOf is the cluster config of a view: as the cluster has it, and always with
// canaries.
func configOf(conn remote.Connection) ([]byte, error) {
	config := conn.Config
	config.Capabilities.SyncedCanaries = true
	return wire.MarshalClusterConfig(config)
}

// countEndpoints has ClusterMesh say as many endpoints of a cluster as the tables have: it
// counts those that it was told of, which are none.
func countEndpoints(upstream store.Factory, o Options, writer *state.Writer) store.Factory {
	if !o.Remote {
		return upstream
	}
	return countedFactory{upstream, writer}
}

type countedFactory struct {
	store.Factory
	writer *state.Writer
}

// NewWatchStore implements store.Factory.
func (f countedFactory) NewWatchStore(cluster string, key store.KeyCreator, observer store.Observer, opts ...store.RWSOpt) store.WatchStore {
	of := f.Factory.NewWatchStore(cluster, key, observer, opts...)
	if _, endpoints := observer.(*ipcache.IPIdentityWatcher); !endpoints {
		return of
	}
	return countedStore{of, func() uint64 { return uint64(f.writer.Counts(cluster).Endpoints) }}
}

type countedStore struct {
	store.WatchStore
	count func() uint64
}

// NumEntries implements store.WatchStore.
func (s countedStore) NumEntries() uint64 { return s.count() }
