// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestScripts runs the Cell in a hive whose tables a few sources have filled,
// and looks at them with the shell's commands.
func TestScripts(t *testing.T) {
	scripttest.Test(t, t.Context(), func(t testing.TB, _ []string) *script.Engine {
		log := hivetest.Logger(t)
		h := hive.New(state.Cell, cell.Invoke(fill), cell.Invoke(read))
		t.Cleanup(func() { require.NoError(t, h.Stop(log, context.Background())) })
		cmds, err := h.ScriptCommands(log)
		require.NoError(t, err)
		maps.Insert(cmds, maps.All(script.DefaultCmds()))
		return &script.Engine{Cmds: cmds}
	}, nil, "testdata/*.txtar")
}

// read asks for every table, as the rooms downstream do.
func read(statedb.Table[*state.Endpoint], statedb.Table[*state.Identity], statedb.Table[*state.Node],
	statedb.Table[*state.Service], statedb.Table[*state.ServiceExport], statedb.Table[*state.Namespace],
	statedb.Table[*state.Workload], statedb.Table[*state.Export], statedb.Table[*state.RemoteCluster]) {
}

func fill(w *state.Writer) error {
	home := w.Origin("home", 1, state.SourceLocal)
	red := w.Origin("red", 2, state.SourceClusterMesh)
	tx := w.Begin()
	defer tx.Abort()
	web := wire.Endpoint{
		Prefix:         netip.MustParsePrefix("10.0.0.1/32"),
		HostIP:         netip.MustParseAddr("192.168.0.1"),
		Identity:       65800,
		EncryptionKey:  3,
		Namespace:      "default",
		Pod:            "web",
		ServiceAccount: "shop",
		NamedPorts:     []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}},
	}
	tx.UpsertEndpoint(home, state.Owner{Object: "endpoint/default/web"}, web)
	web.Identity = 131173
	tx.UpsertEndpoint(red, state.Owner{}, web)
	tx.UpsertEndpoint(red, state.Owner{}, wire.Endpoint{
		Prefix: netip.MustParsePrefix("fd00::1/128"), Identity: 131173, Scope: wire.ScopeRegional,
		Namespace: "default", Pod: "db", Metadata: "m",
	})
	tx.UpsertIdentity(red, wire.Identity{ID: 131173, Labels: "k8s:app=db;"})
	tx.UpsertNode(red, wire.Node{
		Name: "n1", Cluster: "red",
		Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: netip.MustParseAddr("192.168.1.1")}},
		PodCIDRs4: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
		PodCIDRs6: []netip.Prefix{netip.MustParsePrefix("fd00::/112")},
	})
	service := &wire.Service{Cluster: "red", Namespace: "default", Name: "db", Shared: true}
	err := json.Unmarshal([]byte(`{"frontends": {"172.20.0.1": {}}, "backends": {"10.1.0.2": {}, "10.1.0.1": {}}}`), service)
	if err != nil {
		return fmt.Errorf("reading the service: %w", err)
	}
	tx.UpsertService(red, service)
	tx.UpsertServiceExport(red, &wire.ServiceExport{Cluster: "red", Namespace: "default", Name: "db", Type: "ClusterSetIP"})
	tx.UpsertNamespace(state.Namespace{Name: "default", Annotations: map[string]string{"b": "2", "a": "1"}})
	tx.UpsertWorkload(state.Workload{Namespace: "default", Pod: "web",
		Workload: filter.ParseWorkload(map[string]string{filter.SyncKey: "maybe"}, map[string]string{filter.ScopeKey: "regional"})})
	tx.UpsertExport(state.Export{Resource: wire.Endpoints, Mode: filter.SyncOptIn, Region: "eu", Pushed: 1, OnDemand: 2})
	tx.UpdateRemoteCluster("red", func(r *state.RemoteCluster) {
		r.ClusterID, r.Connected = 2, true
		r.Resources[wire.Nodes] = state.ResourceState{Enabled: true, Synced: true, Entries: 1}
		r.Resources[wire.Endpoints] = state.ResourceState{Enabled: true, Entries: 2}
		r.Resources[wire.EndpointSlices] = state.ResourceState{}
		r.Refused[wire.ReasonMalformed], r.Refused[wire.ReasonBadKey] = 1, 2
		r.Conflicts = 1
	})
	tx.Commit()
	return nil
}
