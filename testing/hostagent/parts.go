// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostagent

import (
	"context"

	"github.com/cilium/cilium/api/v1/server"
	agentcmd "github.com/cilium/cilium/daemon/cmd"
	cnicell "github.com/cilium/cilium/daemon/cmd/cni"
	fakecni "github.com/cilium/cilium/daemon/cmd/cni/fake"
	"github.com/cilium/cilium/daemon/cmd/legacy"
	fakedatapath "github.com/cilium/cilium/pkg/datapath/fake"
	"github.com/cilium/cilium/pkg/datapath/linux/route/reconciler"
	"github.com/cilium/cilium/pkg/datapath/neighbor"
	"github.com/cilium/cilium/pkg/datapath/prefilter"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/dial"
	"github.com/cilium/cilium/pkg/endpointstate"
	k8sclient "github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/k8s/synced"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/loadbalancer"
	lbmaps "github.com/cilium/cilium/pkg/loadbalancer/maps"
	"github.com/cilium/cilium/pkg/loadbalancer/redirectpolicy"
	"github.com/cilium/cilium/pkg/maps/ctmap"
	"github.com/cilium/cilium/pkg/maps/policymap"
	"github.com/cilium/cilium/pkg/metrics"
	monitoragent "github.com/cilium/cilium/pkg/monitor/agent"
	"github.com/cilium/cilium/pkg/promise"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/shell"
	statedbreconciler "github.com/cilium/statedb/reconciler"
)

// upstreamCells are upstream's whole control plane and, of its infrastructure,
// the client of the API server. What stands in for the rest is upstream's own.
var upstreamCells = cell.Group(
	agentcmd.ControlPlane,
	k8sclient.Cell,
	kvstore.Cell(kvstore.DisabledBackendName),
	store.Cell,
	dial.ServiceResolverCell,
	metrics.Cell,
	metrics.Metric(metrics.NewLegacyMetrics),
	monitoragent.Cell,
	shell.ServerCell(defaults.ShellSockPath),

	fakedatapath.Cell,
	neighbor.ForwardableIPCell,
	reconciler.TableCell,
	prefilter.Cell,
	cell.Provide(
		neighbor.NewCommonTestConfig(true, false, 100),
		func() statedbreconciler.Reconciler[*reconciler.DesiredRoute] { return nil },
		func() cnicell.CNIConfigManager { return &fakecni.FakeCNIConfigManager{} },
		func() ctmap.GCRunner { return ctmap.NewFakeGCRunner() },
		func() policymap.Factory { return nil },
		func() *server.Server { return nil },
		func() *loadbalancer.TestConfig { return &loadbalancer.TestConfig{} },
		func() redirectpolicy.TestSkipLBMap { return noMap{} },
		// The CRDs are there before an agent is.
		synced.RejectedCRDSyncPromise,
	),
	cell.DecorateAll(func(restorer promise.Promise[endpointstate.Restorer]) promise.Promise[endpointstate.Restorer] {
		return promise.Map(restorer, func(r endpointstate.Restorer) endpointstate.Restorer { return nothingRestored{r} })
	}),
	// In dry mode all of the start is behind this.
	cell.Invoke(func(legacy.DaemonInitialization) {}),
)

// noMap stands in for a map that would be pinned in the host's BPF file system.
// Nothing uses it: local redirect policies are off.
type noMap struct{ lbmaps.SkipLBMap }

// nothingRestored ends the wait for endpoints of an earlier start, which in dry mode
// nothing else does. Behind it are an agent's periodic jobs, by which policies are
// computed anew as the ports change that they name. What makes endpoints of the host, of
// which there is no interface, waits on.
type nothingRestored struct{ endpointstate.Restorer }

// WaitForEndpointRestore implements endpointstate.Restorer.
func (nothingRestored) WaitForEndpointRestore(context.Context) error { return nil }
