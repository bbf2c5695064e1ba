// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package run

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/kubernetes"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// truth is what a cluster's manifests say, read in this process and apart from
// the mesh: what the other clusters' maps are held against.
type truth struct {
	place     Place
	hive      *hive.Hive
	log       *slog.Logger
	db        *statedb.DB
	endpoints statedb.Table[*state.Endpoint]
	// What decides which of them are for other clusters.
	namespaces statedb.Table[*state.Namespace]
	workloads  statedb.Table[*state.Workload]
}

// startTruth reads the manifests of a cluster, and follows their edits.
func startTruth(ctx context.Context, place Place) (*truth, error) {
	t := &truth{place: place, log: slog.New(slog.DiscardHandler)}
	t.hive = hive.New(
		cell.Config(wire.DefaultClusterInfo),
		cell.Config(wire.DefaultMCSAPIConfig),
		kubernetes.ClientCell,
		kubernetes.Cell,
		state.Cell,
		cell.Provide(func() kubernetes.PodMetadata {
			return kubernetes.PodMetadata(place.Cluster.Workloads.ReadsPods(place.Cluster.Region))
		}),
		cell.Invoke(func(db *statedb.DB, endpoints statedb.Table[*state.Endpoint],
			namespaces statedb.Table[*state.Namespace], workloads statedb.Table[*state.Workload]) {
			t.db, t.endpoints, t.namespaces, t.workloads = db, endpoints, namespaces, workloads
		}),
	)
	hive.AddConfigOverride(t.hive, func(cfg *wire.ClusterInfo) {
		cfg.Name, cfg.ID, cfg.MaxConnectedClusters = place.Cluster.Name, place.Cluster.ID, place.Cluster.MaxConnectedClusters
	})
	hive.AddConfigOverride(t.hive, func(cfg *kubernetes.Config) {
		cfg.Manifests, cfg.EnableCiliumEndpointSlice = place.Cluster.Manifests, place.Cluster.EndpointSlices
	})
	if err := t.hive.Start(t.log, ctx); err != nil {
		return nil, fmt.Errorf("reading the manifests of %s: %w", place.Cluster.Name, err)
	}
	for _, table := range []statedb.TableMeta{t.endpoints, t.namespaces, t.workloads} {
		_, initialized := table.Initialized(t.db.ReadTxn())
		select {
		case <-initialized:
		case <-ctx.Done():
			return t, context.Cause(ctx)
		}
	}
	return t, nil
}

// isFor says whether a cluster is to have an endpoint: its own always, another one by
// the filters.
func (t *truth) isFor(txn statedb.ReadTxn, row *state.Endpoint, reader Cluster) bool {
	own := t.place.Cluster
	if reader.Name == own.Name {
		return true
	}
	source := filter.Source{Namespace: row.Namespace(), Namespaces: own.Namespaces, Workloads: own.Workloads, Region: own.Region}
	if ns, _, found := t.namespaces.Get(txn, state.NamespaceByName(row.Namespace())); found {
		source.Exists, source.Annotations = true, ns.Annotations
	}
	if w, _, found := t.workloads.Get(txn, state.WorkloadByPod(row.Namespace(), row.Pod())); found {
		source.Pod = w.Workload
	}
	decision := source.Explain()
	return decision.Fate == filter.Pushed && filter.Crosses(decision.Scope, own.Region, reader.Region)
}

func (t *truth) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return t.hive.Stop(t.log, ctx)
}

// example is an endpoint with a pod's name that a cluster is to have, for a proof.
func (t *truth) example(reader Cluster) (*state.Endpoint, bool) {
	txn := t.db.ReadTxn()
	for row := range t.endpoints.All(txn) {
		if row.Pod() != "" && t.isFor(txn, row, reader) {
			return row, true
		}
	}
	return nil, false
}

// edited is when the cluster's manifests last changed on disk.
func (t *truth) edited() time.Time {
	var latest time.Time
	_ = filepath.WalkDir(t.place.Cluster.Manifests, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return nil // a file that has just gone is none that was edited
		}
		if info, err := os.Stat(path); err == nil && info.ModTime().After(latest) {
			latest = info.ModTime()
		}
		return nil
	})
	return latest
}

// wanted is what a map should say of an address; none if it has no owner.
type wanted struct {
	addr     netip.Addr
	name     string // of the pod
	identity string
	tunnel   string
	gone     bool
}

func newWanted(row *state.Endpoint, gone bool) wanted {
	e := row.Endpoint()
	w := wanted{addr: e.Prefix.Addr(), name: e.Namespace + "/" + e.Pod, gone: gone,
		identity: fmt.Sprint(e.Identity)}
	if e.HostIP.IsValid() {
		w.tunnel = e.HostIP.String()
	}
	return w
}

// matches says whether a map's entry is what is wanted. An address without an
// owner falls back to its node's CIDR, with another identity.
func (w wanted) matches(entry mapEntry) bool {
	if w.gone {
		return entry.identity != w.identity
	}
	return entry.identity == w.identity && (w.tunnel == "" || entry.tunnel == w.tunnel)
}
