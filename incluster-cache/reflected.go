// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// reflectedInterval is how often the row of the datastore is brought up to date
// where Kubernetes is the source: it says how much there is, which nobody waits for.
const reflectedInterval = time.Second

// reflected tells what is known about Kubernetes as the source of this cluster's
// state, as far as that isn't told by the health of each kind's reflector.
type reflected struct {
	log     *slog.Logger
	db      *statedb.DB
	writer  *state.Writer
	cluster wire.ClusterInfo
	from    reading.From
	since   time.Time
}

// announce says once where the state comes from, or that it doesn't.
func (r *reflected) announce(_ context.Context, health cell.Health) error {
	if r.from == "" {
		r.log.Info("Not taking in this cluster's own state, since no Kubernetes is configured")
		health.OK("Not taking in this cluster's own state: no Kubernetes is configured")
		return nil
	}
	r.log.Info("Reading this cluster's state from Kubernetes", "backend", string(r.from))
	health.OK("Reading from " + string(r.from))
	return nil
}

// update writes the row.
func (r *reflected) update(context.Context) error {
	tables, counts, txn := r.writer.Tables(), r.writer.Counts(r.cluster.Name), r.db.ReadTxn()
	of := func(pending []string, entries int) state.ResourceState {
		return state.ResourceState{Enabled: r.from != "", Synced: r.from != "" && !slices.Contains(pending, reading.Initializer), Entries: entries}
	}
	resources := map[wire.Resource]state.ResourceState{
		wire.Identities: of(tables.Identities.PendingInitializers(txn), counts.Identities),
		wire.Nodes:      of(tables.Nodes.PendingInitializers(txn), counts.Nodes),
		wire.Endpoints:  of(tables.Endpoints.PendingInitializers(txn), counts.Endpoints),
		wire.Services:   of(tables.Services.PendingInitializers(txn), counts.Services),
	}
	ready := r.from != ""
	for _, resource := range resources {
		ready = ready && resource.Synced
	}
	tx := r.writer.Begin()
	tx.UpdateDatastore(func(row *state.Datastore) {
		row.Kind, row.Name, row.ClusterID = DatastoreKubernetes, r.cluster.Name, r.cluster.ID
		row.Backend, row.Connected, row.Ready, row.Since = string(r.from), r.from != "", ready, r.since
		row.Resources = resources
	})
	tx.Commit()
	return nil
}
