// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"testing"

	mcsapitypes "github.com/cilium/cilium/pkg/clustermesh/mcsapi/types"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_discoveryv1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestServicesWaitForTheirBackends: after a restart readers still have the
// services as they were; a service must not appear without the backends that
// are yet to be listed, nor its table as complete.
func TestServicesWaitForTheirBackends(t *testing.T) {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	kinds, applier, err := assemble(params{
		Log: hivetest.Logger(t), MCSAPI: mcsapitypes.MCSAPIConfig{EnableMCSAPI: true},
		Cluster: wire.ClusterInfo{Name: "cluster3", ID: 3}, Writer: writer, Metrics: NewMetrics(),
	})
	require.NoError(t, err)
	list := func(kindName string, objects ...any) {
		for _, k := range kinds {
			if k.Kind == kindName {
				require.NoError(t, k.store.Replace(objects, ""))
				applier.applyAll()
				return
			}
		}
		t.Fatalf("no kind %s", kindName)
	}
	services := writer.Tables().Services
	initialized := func() bool {
		done, _ := services.Initialized(db.ReadTxn())
		return done
	}

	list("Service", parse[slim_corev1.Service](t, "metadata: {name: web, namespace: foo}\nspec: {clusterIP: 10.96.0.7}"))
	require.Zero(t, services.NumObjects(db.ReadTxn()))
	list("EndpointSlice", parse[slim_discoveryv1.EndpointSlice](t, `
metadata: {name: web-1, namespace: foo, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1]}]
`))
	require.Zero(t, services.NumObjects(db.ReadTxn()))
	require.False(t, initialized())

	list("ServiceExport")
	require.True(t, initialized())
	row, _, found := services.Get(db.ReadTxn(), state.ServiceByName("cluster3", "foo", "web"))
	require.True(t, found)
	require.Contains(t, row.Backends, "10.0.0.1")
	require.Zero(t, writer.Tables().Nodes.NumObjects(db.ReadTxn()))
	done, _ := writer.Tables().Nodes.Initialized(db.ReadTxn())
	require.False(t, done, "nodes wait for their own list")
}
