// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package agent_test

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/hive/cell"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/host/agent"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/testing/hostagent"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	patience  = 3 * time.Minute
	tick      = 20 * time.Millisecond
	namespace = "meadow"
)

// upstreams are the watches of an agent all over its cluster: of nodes one is for its own.
var upstreams = map[string]int{"ciliumendpoints": 1, "ciliumidentities": 1, "ciliumnodes": 2}

// watches are those that are open at the API server.
func watches(ctx context.Context, t require.TestingT, server *kubeapi.Server) map[string]int {
	open := map[string]int{}
	for resource := range upstreams {
		n, err := server.Metric(ctx, "apiserver_longrunning_requests", map[string]string{"verb": "WATCH", "resource": resource})
		require.NoError(t, err)
		open[resource] = int(n)
	}
	return open
}

// parts are what a test looks at of ours.
type parts struct {
	cell.In

	Writer *state.Writer
	Mesh   *clustermesh.ClusterMesh
}

// rows are how many rows our tables have.
func (p *parts) rows(a *hostagent.Agent) map[string]int {
	txn, tables := a.DB.ReadTxn(), p.Writer.Tables()
	return map[string]int{
		"endpoints": tables.Endpoints.NumObjects(txn), "identities": tables.Identities.NumObjects(txn),
		"nodes": tables.Nodes.NumObjects(txn), "services": tables.Services.NumObjects(txn),
		"service-exports": tables.ServiceExports.NumObjects(txn), "remote-clusters": tables.RemoteClusters.NumObjects(txn),
	}
}

// TestAgent has an agent of a cluster in a mesh run as upstream's, with our cells and none
// of our flags, and with --datastore=kubernetes.
func TestAgent(t *testing.T) {
	server := kubeapi.Start(t)
	ctx := t.Context()
	hostagent.AddNode(t, server, "one", netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.244.1.0/24"))
	require.NoError(t, server.CreateNamespace(ctx, namespace))
	north := mesh.NewCluster(t, "north", 1)
	north.NewExporter(t, mesh.NewObjects(t)).Start()
	flags := mesh.Flags{
		"cluster-name": "west", "cluster-id": "2",
		"clustermesh-config": mesh.NewDirectory(t).Add("north", north.Etcd).Path,
	}
	// open waits until so many watches more are open than before all agents.
	idle := watches(ctx, t, server)
	open := func(of map[string]int) {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			now := watches(ctx, c, server)
			for resource := range now {
				now[resource] -= idle[resource]
			}
			require.Equal(c, of, now)
		}, patience, tick)
	}
	none := map[string]int{"ciliumendpoints": 0, "ciliumidentities": 0, "ciliumnodes": 0}

	var of parts
	settle := func(a *hostagent.Agent, mesh *clustermesh.ClusterMesh) *hostagent.Pod {
		bee := a.AddPod(namespace, "bee", map[string]string{"app": "bee"})
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			id, err := bee.Endpoint.GetSecurityIdentity()
			require.NoError(c, err)
			require.NotNil(c, id)
			found, ok := a.IPCache.LookupByIP(bee.Address.String())
			require.True(c, ok)
			require.Equal(c, id.ID, found.ID)
			require.Equal(c, 1, mesh.NumReadyClusters())
		}, patience, tick)
		return bee
	}
	t.Run("upstream", func(t *testing.T) {
		var clusters *clustermesh.ClusterMesh
		a := hostagent.New(t, hostagent.Config{
			Server: server, Node: "one", Flags: flags,
			Cells: []cell.Cell{cell.Invoke(func(m *clustermesh.ClusterMesh) { clusters = m })},
		})
		a.Start()
		bee := settle(a, clusters)
		open(upstreams)
		a.DeletePod(bee)
		a.Stop()
	})
	open(none)

	var dials atomic.Int32
	compiledIn := []cell.Cell{
		agent.Cells,
		cell.DecorateAll(func(dial remote.Dialer) remote.Dialer {
			return func(ctx context.Context, address string) (net.Conn, error) {
				dials.Add(1)
				return dial(ctx, address)
			}
		}),
		cell.Invoke(func(p parts) { of = p }),
	}
	t.Run("none", func(t *testing.T) {
		a := hostagent.New(t, hostagent.Config{Server: server, Node: "one", Flags: flags, Cells: compiledIn})
		a.Start()
		bee := settle(a, of.Mesh)
		open(upstreams)
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			for id, status := range a.OurHealth() {
				if id == "waggle.ipcache.datapath" {
					continue // it says whose the map is
				}
				require.EqualValues(c, types.LevelStopped, status.Level, "%s: %s", id, status.Message)
			}
		}, patience, tick)
		for table, n := range of.rows(a) {
			require.Zero(t, n, table)
		}
		require.Zero(t, dials.Load(), "what is upstream's to read was dialled by us")
		a.DeletePod(bee)
		a.Stop()
	})
	open(none)

	t.Run("kubernetes", func(t *testing.T) {
		with := maps.Clone(flags)
		with["datastore"] = "kubernetes"
		a := hostagent.New(t, hostagent.Config{Server: server, Node: "one", Flags: with, Cells: compiledIn})
		a.Start()
		bee := settle(a, of.Mesh)
		open(map[string]int{"ciliumendpoints": 2, "ciliumidentities": 2, "ciliumnodes": 3})
		wasp := a.AddPod(namespace, "wasp", map[string]string{"app": "wasp"})
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			requireSameEndpoints(c, a, of.Writer, bee.Address, wasp.Address)
		}, patience, tick)
		require.Zero(t, dials.Load())
		a.DeletePod(bee)
		a.DeletePod(wasp)
		a.Stop()
	})

	// That a dial of ours would have been seen.
	t.Run("waggle", func(t *testing.T) {
		with := maps.Clone(flags)
		with["clustermesh-ingest"] = "waggle"
		a := hostagent.New(t, hostagent.Config{Server: server, Node: "one", Flags: with, Cells: compiledIn})
		a.Start()
		settle(a, of.Mesh)
		require.NotZero(t, dials.Load())
		a.Stop()
	})
}

// requireSameEndpoints compares what the tables have of pods with what the ipcache has.
func requireSameEndpoints(t require.TestingT, a *hostagent.Agent, writer *state.Writer, addresses ...netip.Addr) {
	rows := map[netip.Addr]identity.NumericIdentity{}
	for row := range writer.Tables().Endpoints.All(a.DB.ReadTxn()) {
		ep := row.Endpoint()
		rows[ep.Prefix.Addr()] = identity.NumericIdentity(ep.Identity)
	}
	entries := map[netip.Addr]identity.NumericIdentity{}
	for _, address := range addresses {
		id, ok := a.IPCache.LookupByIP(address.String())
		require.True(t, ok, address)
		entries[address] = id.ID
	}
	require.Equal(t, entries, rows)
}
