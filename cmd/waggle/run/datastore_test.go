// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/cells/status"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestPrintDatastores(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	reads := Datastore{Cluster: "amber", Datastore: state.Datastore{
		Kind: "etcd", Backend: "10.0.0.7:2379",
		RemoteCluster: state.RemoteCluster{Connected: true, Ready: true, Since: now.Add(-90 * time.Second),
			Resources: map[wire.Resource]state.ResourceState{wire.Nodes: {Entries: 3}, wire.Endpoints: {Entries: 40}}},
	}}
	away := Datastore{Cluster: "birch", Problem: "connection refused", Datastore: state.Datastore{
		Kind: "etcd", RemoteCluster: state.RemoteCluster{Since: now.Add(-time.Hour)},
	}}
	var out strings.Builder
	require.NoError(t, PrintDatastores(&out, []Datastore{reads, away, {Cluster: "clover", Problem: "not running"}}, now))
	require.Equal(t, strings.TrimLeft(`
CLUSTER  DATASTORE  BACKEND        STATE                SYNCED  NODES  IDENTITIES  ENDPOINTS  SERVICES  
amber    etcd       10.0.0.7:2379  connected for 1m30s  yes     3      0           40         0         
birch    etcd       -              away for 1h0m0s      no      0      0           0          0         connection refused
clover   -          -              unknown              no      0      0           0          0         not running
`, "\n"), out.String())
	out.Reset()
	require.NoError(t, PrintDatastores(&out, nil, now))
	require.Empty(t, out.String())
}

func TestPrintOnDemand(t *testing.T) {
	on := &status.OnDemand{Enabled: true, Waiting: 2, RefusedCIDRs: 1, Blind: []string{"clover"}, Away: []string{"birch", "dale"},
		Entries: map[string]int{"endpoint": 3, "absent": 1}}
	var out strings.Builder
	require.NoError(t, PrintOnDemand(&out, []ProcessStatus{
		{Cluster: "amber", Status: &status.Report{OnDemand: on}},
		{Cluster: "birch", Status: &status.Report{OnDemand: &status.OnDemand{}}},
		{Cluster: "clover", Problem: "not running"},
	}))
	require.Equal(t, strings.TrimLeft(`
CLUSTER  ON DEMAND             WAITING  REFUSED CIDRS  BLIND FOR  AWAY
amber    1 absent, 3 endpoint  2        1              clover     birch,dale

`, "\n"), out.String())
	out.Reset()
	require.NoError(t, PrintOnDemand(&out, []ProcessStatus{{Cluster: "birch", Status: &status.Report{OnDemand: &status.OnDemand{}}}}))
	require.Empty(t, out.String())
}
