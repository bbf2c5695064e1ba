// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"github.com/cilium/cilium/api/v1/kvstoremesh/server/restapi/cluster"
	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/statedb"
	"github.com/go-openapi/runtime/middleware"
	"github.com/go-openapi/strfmt"
	"k8s.io/utils/ptr"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// newClusterHandler answers GET /v1/cluster from the table of remote clusters. A replica
// that isn't the leader has none in it.
func newClusterHandler(db *statedb.DB, clusters statedb.Table[*state.RemoteCluster]) cluster.GetClusterHandler {
	return cluster.GetClusterHandlerFunc(func(cluster.GetClusterParams) middleware.Responder {
		payload := []*models.RemoteCluster{} // in the order of their names
		for row := range clusters.All(db.ReadTxn()) {
			payload = append(payload, clusterModel(row))
		}
		return cluster.NewGetClusterOK().WithPayload(payload)
	})
}

// clusterModel is a row as upstream's API has it.
func clusterModel(row *state.RemoteCluster) *models.RemoteCluster {
	resource := func(name wire.Resource) state.ResourceState { return row.Resources[name] }
	entries := func(name wire.Resource) int64 { return int64(resource(name).Entries) }
	model := &models.RemoteCluster{
		Name:              row.Name,
		Connected:         row.Connected,
		Ready:             row.Ready && row.Connected,
		Status:            clusterStatus(row),
		NumFailures:       int64(row.Failures),
		LastFailure:       strfmt.DateTime(row.LastFailure),
		NumNodes:          entries(wire.Nodes),
		NumEndpoints:      entries(wire.Endpoints) + entries(wire.EndpointSlices),
		NumIdentities:     entries(wire.Identities),
		NumSharedServices: entries(wire.Services),
		NumServiceExports: entries(wire.ServiceExports),
		Synced: &models.RemoteClusterSynced{
			Nodes:      resource(wire.Nodes).Synced,
			Endpoints:  resource(wire.Endpoints).Synced,
			Identities: resource(wire.Identities).Synced,
			Services:   resource(wire.Services).Synced,
		},
	}
	if row.Connected || row.ClusterID != 0 {
		model.Config = &models.RemoteClusterConfig{
			Required:              true,
			Retrieved:             row.ClusterID != 0,
			ClusterID:             int64(row.ClusterID),
			Kvstoremesh:           row.Cached,
			SyncCanaries:          row.Canaries,
			ServiceExportsEnabled: row.ServiceExports,
		}
	}
	if exports := resource(wire.ServiceExports); exports.Enabled {
		model.Synced.ServiceExports = ptr.To(exports.Synced)
	}
	return model
}

// clusterStatus says how the connection is, and whatever is wrong.
func clusterStatus(row *state.RemoteCluster) string {
	text := "Waiting for a connection to be established"
	if row.Connected {
		text = "Connected to etcd, ID: " + row.EtcdID
	}
	if trouble := row.Trouble(); trouble != "" {
		text += ": " + trouble
	}
	return text
}
