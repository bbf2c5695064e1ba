// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
)

// Readiness says whether the clusters that were configured at start are in the
// local etcd, so that agents may be sent here. A cluster that can't be reached
// within a while is no reason to keep all others from being served.
type Readiness struct {
	log    *slog.Logger
	config Config
	mesh   *remote.Mesh
	db     *statedb.DB
	table  tableOf
	ready  chan struct{}
}

func newReadiness(log *slog.Logger, config Config, mesh *remote.Mesh, db *statedb.DB, table tableOf) (*Readiness, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Readiness{log: log, config: config, mesh: mesh, db: db, table: table, ready: make(chan struct{})}, nil
}

// Ready is closed once KVStoreMesh is ready; it stays so.
func (r *Readiness) Ready() <-chan struct{} { return r.ready }

func (r *Readiness) register(jobs job.Group) {
	if !r.mesh.Enabled() {
		close(r.ready)
		return
	}
	jobs.Add(job.OneShot("readiness", r.run))
}

func (r *Readiness) run(ctx context.Context, health cell.Health) error {
	began := time.Now()
	select {
	case <-r.mesh.Listed():
	case <-ctx.Done():
		return nil
	}
	clusters := r.mesh.Clusters()
	perCluster := time.NewTimer(r.config.PerClusterReadyTimeout)
	defer perCluster.Stop()
	global := time.NewTimer(r.config.GlobalReadyTimeout)
	defer global.Stop()
	var impatient bool // of clusters that never connected
	for {
		rows, changed := r.table.AllWatch(r.db.ReadTxn())
		waiting := pending(clusters, statedb.Collect(rows), impatient)
		if len(waiting) == 0 {
			break
		}
		health.OK(fmt.Sprintf("Waiting for %d of %d clusters", len(waiting), len(clusters)))
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			continue
		case <-perCluster.C:
			impatient = true
			continue
		case <-global.C:
			r.log.Warn("Clusters were not replicated in time, serving without them",
				"clusters", waiting, "timeout", r.config.GlobalReadyTimeout)
		}
		break
	}
	close(r.ready)
	r.log.Info("KVStoreMesh is ready", "clusters", len(clusters), "duration", time.Since(began))
	health.OK("Ready")
	return nil
}

// pending gives the clusters that have to be waited for. One that was removed in
// the meantime hasn't, nor, when impatient, one that was never connected to.
func pending(clusters []string, rows []*state.RemoteCluster, impatient bool) []string {
	byName := make(map[string]*state.RemoteCluster, len(rows))
	for _, row := range rows {
		byName[row.Name] = row
	}
	return slices.DeleteFunc(slices.Clone(clusters), func(name string) bool {
		row, ok := byName[name]
		return !ok || row.Ready || (impatient && row.ClusterID == 0)
	})
}
