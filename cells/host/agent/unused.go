// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"

	"github.com/cilium/hive/cell"

	inclustercache "github.com/waggle-mesh/waggle/incluster-cache"
)

// unused lists the flags of ours that are set to something else than their default and,
// as the others are set, mean nothing.
func unused(c config, snapshots inclustercache.SnapshotConfig) (flags []string) {
	if c.Datastore == inclustercache.DatastoreEtcd {
		return nil
	}
	for _, of := range []struct {
		flag string
		set  bool
	}{
		{flagRelistJitter, c.RelistJitter != defaultConfig.RelistJitter},
		{flagRebalance, c.Rebalance != defaultConfig.Rebalance},
		{inclustercache.FlagSnapshotInterval, snapshots != inclustercache.DefaultSnapshotConfig},
	} {
		if of.set {
			flags = append(flags, of.flag)
		}
	}
	return flags
}

// reportUnused says so at start.
func reportUnused(log *slog.Logger, lc cell.Lifecycle, c config, snapshots inclustercache.SnapshotConfig) {
	lc.Append(cell.Hook{OnStart: func(cell.HookContext) error {
		for _, flag := range unused(c, snapshots) {
			log.Info("A flag is set that has no effect", "flag", "--"+flag,
				"reason", "it is for --"+flagDatastore+"="+inclustercache.DatastoreEtcd)
		}
		return nil
	}})
}
