// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"context"
	"strings"

	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"

	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// What an earlier process wrote is on leases that nobody keeps alive any more. A
// cluster's Handler adopts those of its keys once it is connected; that of a
// cluster which is away may be connected after they ran out, and until then its
// last known state is to stay in force.

func registerWarmStart(m *kvStoreMesh, mesh *remote.Mesh, jobs job.Group) {
	if mesh.Enabled() {
		jobs.Add(job.OneShot("adopt-leases", m.keepLeases))
	}
}

// keepLeases is the job. The local etcd may come up after us, and its leases last: those
// that it had when it went get their time anew.
func (m *kvStoreMesh) keepLeases(ctx context.Context, health cell.Health) error {
	health.OK("Looking for the leases of what an earlier process has written")
	err := insistent(ctx, m.log, health, "What an earlier process has written can't be looked for", m.adoptLeases)
	if err == nil {
		health.OK("The leases of what an earlier process has written are kept alive")
	}
	return nil // else the process stops
}

// adoptLeases leaves alone what the local cluster's exporter wrote: if that has
// died, its keys are to go.
func (m *kvStoreMesh) adoptLeases(ctx context.Context) error {
	all := func(string) bool { return true }
	canary := func(key string) bool { return strings.Contains(key, "/"+wire.CacheRoot) }
	config := func(key string) bool { return key != wire.ClusterConfigKey(m.local.Name) }
	for _, of := range []struct {
		prefix string
		mine   func(key string) bool
	}{{wire.CacheRoot, all}, {wire.SyncedRoot, canary}, {wire.ClusterConfigPrefix, config}} {
		if err := m.writer.AdoptLeases(ctx, of.prefix, of.mine); err != nil {
			return err
		}
	}
	return nil
}
