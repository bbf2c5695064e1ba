// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package kvstoremesh replicates the state of remote clusters into the local
// etcd, so that the local agents read only that one:
//
//	remote etcd  cilium/state/… or cilium/cache/…  ──▶  local etcd  cilium/cache/…
//
// It carries bytes, not objects: keys and sizes are checked, values are not
// decoded; of the endpoints of another region the scope alone is looked for. A batch
// that was read is a batch that is written. Nothing is kept of
// a value but a hash; what the local etcd loses is read again from the source.
//
//	config.go    flags
//	cell.go      the wiring
//	cluster.go   one remote cluster, as a remote.Handler
//	replica.go   one resource of one cluster: reader → checks → scope
//	admission.go which keys and values are taken; pure
//	region.go    which endpoints are left out, being regional elsewhere; pure
//	status.go    the row in the table remote-clusters
//	ready.go     whether the clusters known at start have been replicated
//	warm.go      what an earlier process wrote is kept alive
//	orphans.go   what an earlier process left behind of clusters that are gone
//	explain.go   what is taken of a remote cluster, and how much is left out
//	commands.go  both as commands of the shell
//	insist.go    what is asked of a local etcd that may be away
package kvstoremesh

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"
)

// Config is KVStoreMesh's configuration, by upstream's flags where it has them.
type Config struct {
	PerClusterReadyTimeout      time.Duration `mapstructure:"per-cluster-ready-timeout"`
	GlobalReadyTimeout          time.Duration `mapstructure:"global-ready-timeout"`
	EnableHeartbeat             bool          `mapstructure:"enable-heartbeat"`
	DisableDrainOnDisconnection bool          `mapstructure:"disable-drain-on-disconnection"`
	DrainGracePeriod            time.Duration `mapstructure:"drain-grace-period"`
	MaxKeysPerCluster           int           `mapstructure:"max-keys-per-cluster"`
	// ClusterRegion is the region that this cluster is in; empty is none.
	ClusterRegion string `mapstructure:"cluster-region"`
}

// FlagClusterRegion is the exporter's flag of the same name: both tell in which
// region this cluster is, one to other clusters and one to us.
const FlagClusterRegion = "cluster-region"

// DefaultConfig has upstream's defaults. A million keys is twice the endpoints
// of the largest mesh that the project is built for, in a single cluster.
var DefaultConfig = Config{
	PerClusterReadyTimeout: 15 * time.Second,
	GlobalReadyTimeout:     10 * time.Minute,
	DrainGracePeriod:       3 * time.Minute,
	MaxKeysPerCluster:      1_000_000,
}

// Flags registers the flags.
func (def Config) Flags(flags *pflag.FlagSet) {
	flags.Duration("per-cluster-ready-timeout", def.PerClusterReadyTimeout,
		"Remote clusters will be disregarded for readiness checks if a connection cannot be established within this duration")
	flags.Duration("global-ready-timeout", def.GlobalReadyTimeout,
		"KVStoreMesh will be considered ready even if any remote clusters have failed to synchronize within this duration")
	flags.Bool("enable-heartbeat", def.EnableHeartbeat,
		"KVStoreMesh will maintain heartbeat in destination etcd cluster")
	flags.Bool("disable-drain-on-disconnection", def.DisableDrainOnDisconnection,
		"Do not drain cached data upon cluster disconnection")
	flags.Duration("drain-grace-period", def.DrainGracePeriod,
		"Time between the removal of a cluster's configuration and that of its data, for agents to disconnect")
	flags.Int("max-keys-per-cluster", def.MaxKeysPerCluster,
		"Keys taken of one remote cluster; those beyond are refused and counted")
	flags.String(FlagClusterRegion, def.ClusterRegion,
		"Region of this cluster; endpoints that clusters in other regions mark as regional are skipped")
	// It exists, as upstream's does, for those who know why they want it.
	_ = flags.MarkHidden("disable-drain-on-disconnection")
}

// validate refuses what would only be noticed by what doesn't happen.
func (def Config) validate() error {
	for _, one := range []struct {
		flag  string
		value time.Duration
	}{
		{"per-cluster-ready-timeout", def.PerClusterReadyTimeout},
		{"global-ready-timeout", def.GlobalReadyTimeout},
		{"drain-grace-period", def.DrainGracePeriod},
	} {
		if one.value < 0 {
			return fmt.Errorf("--%s=%v: must not be negative", one.flag, one.value)
		}
	}
	if def.MaxKeysPerCluster <= 0 {
		return fmt.Errorf("--max-keys-per-cluster=%d: must be positive", def.MaxKeysPerCluster)
	}
	return nil
}
