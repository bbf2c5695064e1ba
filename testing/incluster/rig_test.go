// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/testing/kubeapi"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

const (
	// patience is how long a condition may take; it only matters for failures.
	patience = 90 * time.Second
	tick     = 50 * time.Millisecond
	// replicaCount is the number of replicas of the cache.
	replicaCount = 2
)

// rig is a cluster in no mesh, with a real API server, whose objects are those of the
// load. Scenes are run in it one after the other.
type rig struct {
	*kubeapi.Server
	cluster *mesh.Cluster
	load    *load
	// reference is an agent that reads Kubernetes itself.
	reference *mesh.Agent
	// own are the API server's own watches, by resource.
	own map[string]int
}

func newRig(t *testing.T) *rig {
	r := &rig{Server: kubeapi.Start(t), cluster: &mesh.Cluster{Name: "default"}}
	r.own = r.watches(t)
	r.load = newLoad(t, &r.Clients)
	r.reference = r.cluster.NewAgent(t, nil, mesh.Flags{"enable-k8s": "true"}, r.flags())
	r.reference.Start()
	return r
}

// flags are where Kubernetes is.
func (r *rig) flags() mesh.Flags { return mesh.Flags{"k8s-kubeconfig-path": r.Kubeconfig} }

// scene is the cache with its replicas running, an agent that reads it, and the
// load at work.
type scene struct {
	*testing.T
	*rig
	replicas []*mesh.Cache
	agent    *mesh.Agent
	// untouched are the revisions of rows that the load leaves alone, see still.
	untouched map[string]statedb.Revision
}

// scene prepares one, of which the agent doesn't run yet.
func (r *rig) scene(t *testing.T) *scene {
	s := &scene{T: t, rig: r}
	for range replicaCount {
		s.replicas = append(s.replicas, r.cluster.NewCacheFrom(t, r.flags()))
	}
	// It could read the API server, as every agent of a real cluster could.
	s.agent = r.cluster.NewLocalAgent(t, "node-1", nil, s.replicas, r.flags())
	s.agent.FollowEach(t)
	return s
}

// play runs a scene: everything runs and is equal, then comes what happens, and at
// the end everything is equal again; no row that stayed valid was missing, and the API
// server is watched by the replicas and the reference alone.
func (r *rig) play(t *testing.T, happens func(*scene)) {
	s := r.scene(t)
	for _, replica := range s.replicas {
		replica.Start()
	}
	s.agent.Start()
	s.requireTruth()
	s.still()
	stop := r.load.run(t)
	happens(s)
	stop()
	s.watchedBy(1 + replicaCount)
	s.requireTruth()
	s.requireUnbroken()
}

// still notes the revisions of the rows that nothing changes from now on, for as long as
// this agent runs: a row that went and came back between two looks of a follower is
// found by its new one.
func (s *scene) still() { s.untouched = s.revisionsUntouched() }

func (s *scene) revisionsUntouched() map[string]statedb.Revision {
	s.Helper()
	all, out := s.agent.Revisions(), map[string]statedb.Revision{}
	for _, row := range s.load.stays() {
		// Of what stays the load changes endpoints and services.
		if strings.HasPrefix(row, "nodes ") || strings.HasPrefix(row, "identities ") {
			require.Contains(s, all, row)
			out[row] = all[row]
		}
	}
	require.Len(s, out, stayingNodes+stayingIdentities)
	return out
}

// requireUnbroken fails for each row that was deleted though its object stayed, in any
// of the agent's lives.
func (s *scene) requireUnbroken() {
	s.Helper()
	require.NotEmpty(s, s.agent.Followers())
	stays := s.load.stays()
	for _, follower := range s.agent.Followers() {
		for _, gone := range follower.Gone() {
			require.NotContains(s, stays, gone)
		}
	}
	if s.untouched != nil {
		require.Equal(s, s.untouched, s.revisionsUntouched())
	}
}

// datastore is what the agent says of its cache.
func (s *scene) datastore(t require.TestingT) *state.Datastore {
	row, _, found := s.agent.Datastore.Get(s.agent.DB.ReadTxn(), state.TheDatastore())
	require.True(t, found)
	return row
}

// reads waits until the agent reads a replica, and gives its number.
func (s *scene) reads() (index int) {
	s.Helper()
	require.EventuallyWithT(s, func(c *assert.CollectT) {
		row := s.datastore(c)
		require.True(c, row.Connected)
		for i, replica := range s.replicas {
			if replica.Address() == row.Backend {
				index = i
				return
			}
		}
		require.Fail(c, "no such replica", row.Backend)
	}, patience, tick)
	return index
}

// away waits until the agent says that it reads none.
func (s *scene) away() {
	s.Helper()
	require.EventuallyWithT(s, func(c *assert.CollectT) {
		require.False(c, s.datastore(c).Connected)
		require.Contains(c, s.agent.Health("follow-cache"), "Away from the cache since ")
	}, patience, tick)
}

// watched are the resources that a cache covers, as the API server calls them: of
// CiliumEndpoints and CiliumEndpointSlices it is the one that the cluster has.
var watched = []string{"ciliumidentities", "ciliumnodes", "ciliumendpoints", "services", "endpointslices"}

// watches is the number of watches that the API server serves on each of them, beside its
// own.
func (r *rig) watches(t require.TestingT) map[string]int {
	out := map[string]int{}
	for _, resource := range watched {
		n, err := r.Metric(context.Background(), "apiserver_longrunning_requests", map[string]string{"verb": "WATCH", "resource": resource})
		require.NoError(t, err)
		out[resource] = int(n) - r.own[resource]
	}
	return out
}

// everywhere is the same number of watches on each resource.
func everywhere(n int) map[string]int {
	out := map[string]int{}
	for _, resource := range watched {
		out[resource] = n
	}
	return out
}

// requests is how often the API server was asked for a list of these resources.
func (s *scene) requests() (n float64) {
	s.Helper()
	for _, resource := range watched {
		lists, err := s.Metric(s.Context(), "apiserver_request_total", map[string]string{"verb": "LIST", "resource": resource})
		require.NoError(s, err)
		n += lists
	}
	return n
}

// arrives waits for a pod that is created now.
func (s *scene) arrives() {
	s.Helper()
	pod := s.load.addPod(s.T)
	require.Eventually(s, func() bool {
		row, _, found := s.agent.Endpoints.Get(s.agent.DB.ReadTxn(), state.EndpointByPrefix(pod.Prefix))
		return found && row.Pod() == pod.Pod
	}, patience, tick, fmt.Sprintf("waiting in vain for %s", pod.Pod))
	s.load.giveUp(pod)
}
