// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build peers

// Peer-bridge is our way into upstream's agent, for "waggle bench ingest": the cells of
// an agent up to its tables, and the bridge's way for endpoints from there to upstream's
// ipcache.IPCache, as in cilium-agent with --clustermesh-ingest=waggle. It has no BPF map,
// as peer-ingest hasn't. Nodes and identities are read as well, and end in our tables: for
// want of a ClusterMesh nobody asks for the views by which upstream has them.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/endpoint/regeneration"
	"github.com/cilium/cilium/pkg/endpointmanager"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/k8s/client"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/node/manager"
	"github.com/cilium/cilium/pkg/policy"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/bridge"
	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/state"
)

func main() {
	h := hive.New(
		metrics.Cell,
		client.Cell,
		cells.AgentTables,
		// Of the agent what the bridge needs to bring endpoints of remote clusters.
		cell.Provide(
			newIPCache,
			func() bridge.Options { return bridge.Options{Remote: true} },
			func(log *slog.Logger) *policy.Updater { return policy.NewUpdater(log, nil, noEndpoints{}) },
			func() endpointmanager.EndpointManager { return nil },
			func() manager.NodeManager { return nil },
			regeneration.NewFence,
		),
		bridge.Cell,
		cell.Invoke(report),
	)
	h.RegisterFlags(pflag.CommandLine)
	pflag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := h.Run(log); err != nil {
		fmt.Fprintln(os.Stderr, "peer-bridge:", err)
		os.Exit(1)
	}
}

// noEndpoints are those of a node without any.
type noEndpoints struct{}

// TriggerRegenerateAllEndpoints is for new policies.
func (noEndpoints) TriggerRegenerateAllEndpoints() {}

// counter counts the entries of the ipcache.
type counter struct{ entries atomic.Int64 }

// OnIPIdentityCacheChange implements ipcache.IPIdentityMappingListener.
func (c *counter) OnIPIdentityCacheChange(kind ipcache.CacheModification, _ types.PrefixCluster, _, _ net.IP, old *ipcache.Identity,
	_ ipcache.Identity, _ uint8, _ *ipcache.K8sMetadata, _ uint8) {
	switch {
	case kind == ipcache.Upsert && old == nil:
		c.entries.Add(1)
	case kind == ipcache.Delete:
		c.entries.Add(-1)
	}
}

func newIPCache(log *slog.Logger, lifecycle cell.Lifecycle) (*ipcache.IPCache, *counter) {
	ctx, cancel := context.WithCancel(context.Background())
	cache := ipcache.NewIPCache(&ipcache.Configuration{Context: ctx, Logger: log})
	counted := &counter{}
	cache.AddListener(counted)
	lifecycle.Append(cell.Hook{OnStop: func(cell.HookContext) error {
		cancel()
		return cache.Shutdown()
	}})
	return cache, counted
}

// lookAgain is the time between two looks at how far it is.
const lookAgain = 5 * time.Millisecond

// report says on standard output when all clusters were in the ipcache, and how many
// entries those are.
func report(jobs job.Group, db *statedb.DB, writer *state.Writer, counted *counter) {
	table := writer.Tables().Endpoints
	jobs.Add(job.OneShot("report", func(ctx context.Context, _ cell.Health) error {
		for {
			txn := db.ReadTxn()
			entries := counted.entries.Load()
			if complete, _ := table.Initialized(txn); complete && int(entries) == table.NumObjects(txn) {
				fmt.Printf("synced %d %d\n", time.Now().UnixNano(), entries)
				return nil
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(lookAgain):
			}
		}
	}))
}
