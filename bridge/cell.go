// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package bridge brings what is in our tables to upstream's agent, within whose hive they are.
package bridge

import "github.com/cilium/hive/cell"

// Options say what is brought.
type Options struct {
	// Local: this cluster's own endpoints and nodes, which the agent doesn't read itself.
	Local bool
	// Remote: remote clusters, which the agent's own ClusterMesh doesn't read itself.
	Remote bool
}

// Cell brings the tables to the agent.
var Cell = cell.Module("bridge", "Tables to what the agent has of its own",
	cell.Invoke(func(Options) {}),
)
