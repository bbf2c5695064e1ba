// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"
	"testing"

	healthtypes "github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/ipcache"
)

// Agent is "waggle agent". Its fields are set by each start.
type Agent struct {
	*Hive
	DB *statedb.DB
	state.Tables
	// Datapath is its map.
	Datapath *ipcache.Datapath
	// Backends are the replicas of the cache by the addresses, host:port, that
	// they have in Kubernetes, where no address is one of this machine's. They are
	// to be set before the start, of an agent of NewLocalAgent.
	Backends map[string]*Cache

	health statedb.Table[healthtypes.Status]
	// followed is the test for which each start is followed, see FollowEach.
	followed  testing.TB
	followers []*Follower
}

// FollowEach has the tables of each start followed from before anything fills them,
// until the test ends.
func (a *Agent) FollowEach(t testing.TB) { a.followed = t }

// Followers are those of FollowEach, one for each start.
func (a *Agent) Followers() []*Follower { return a.followers }

// NewAgent makes an agent that takes in the clusters of the directory, if there is
// one, usually from the cluster's own etcd; it is to be started. The map is in memory unless
// the flags say otherwise.
func (c *Cluster) NewAgent(t testing.TB, remotes *Directory, flags ...Flags) *Agent {
	t.Helper()
	a := &Agent{}
	own := Flags{
		"ipcache-backend": ipcache.BackendMemory,
		"state-dir":       t.TempDir(), // the default is a real agent's
		// Tests may run in a pod, whose cluster is none of the mesh's.
		"enable-k8s": "false",
	}
	if remotes != nil {
		own["clustermesh-config"] = remotes.Path
	}
	a.Hive = NewHive(t, c.Flags(append([]Flags{own}, flags...)...), cells.Agent, cell.Invoke(a.use))
	return a
}

// use takes what a hive that starts has.
func (a *Agent) use(db *statedb.DB, writer *state.Writer, datapath *ipcache.Datapath, health statedb.Table[healthtypes.Status]) {
	a.DB, a.Tables, a.Datapath, a.health = db, writer.Tables(), datapath, health
	if a.followed != nil {
		a.followers = append(a.followers, a.Follow(a.followed))
	}
}

// Health is what one of the agent's jobs says of itself, by the last part of its
// name; empty if there is none.
func (a *Agent) Health(job string) (message string) {
	for status := range a.health.All(a.DB.ReadTxn()) {
		if component := status.ID.Component; len(component) > 0 && strings.HasSuffix(component[len(component)-1], job) {
			return status.Message
		}
	}
	return ""
}
