// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"testing"

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
}

// NewAgent makes an agent that takes in the clusters of the directory, usually
// from the cluster's own etcd; it is to be started. The map is in memory unless
// the flags say otherwise.
func (c *Cluster) NewAgent(t testing.TB, remotes *Directory, flags ...Flags) *Agent {
	t.Helper()
	a := &Agent{}
	own := Flags{
		"clustermesh-config": remotes.Path, "ipcache-backend": ipcache.BackendMemory,
		// Tests may run in a pod, whose cluster is none of the mesh's.
		"enable-k8s": "false",
	}
	a.Hive = NewHive(t, c.Flags(append([]Flags{own}, flags...)...), cells.Agent, cell.Invoke(a.use))
	return a
}

// use takes what a hive that starts has.
func (a *Agent) use(db *statedb.DB, writer *state.Writer, datapath *ipcache.Datapath) {
	a.DB, a.Tables, a.Datapath = db, writer.Tables(), datapath
}
