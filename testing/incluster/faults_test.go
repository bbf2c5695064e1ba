// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFaults lets go wrong what can while the cluster changes. After each fault the
// agent's tables equal what Kubernetes holds, and no row that stayed valid was
// missing in between.
func TestFaults(t *testing.T) {
	r := newRig(t)
	t.Run("agent starts before the cache", r.agentFirst)
	for name, happens := range map[string]func(*scene){
		"a replica is killed":                           (*scene).replicaKilled,
		"both replicas are killed and come back empty":  (*scene).allKilled,
		"the API server is away while the cache serves": (*scene).apiServerAway,
		"the cache is away while the API server serves": (*scene).cacheAway,
		"connections break again and again":             (*scene).connectionsBreak,
	} {
		t.Run(name, func(t *testing.T) { r.play(t, happens) })
	}
}

func (r *rig) agentFirst(t *testing.T) {
	s := r.scene(t)
	stop := r.load.run(t)
	s.agent.Start()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Contains(c, s.agent.Health("follow-cache"), "No cache to read from since ")
	}, patience, tick)
	initialized, _ := s.agent.Endpoints.Initialized(s.agent.DB.ReadTxn())
	require.False(t, initialized)
	s.watchedBy(1) // the reference alone
	s.replicas[0].Start()
	s.arrives()
	stop()
	s.requireTruth()
	s.requireUnbroken()
	initialized, _ = s.agent.Endpoints.Initialized(s.agent.DB.ReadTxn())
	require.True(t, initialized)
}

func (s *scene) replicaKilled() {
	for range 2 {
		before := s.reads()
		s.arrives()
		s.replicas[before].Kill()
		s.arrives()
		require.NotEqual(s, before, s.reads())
		s.replicas[before].Start()
	}
}

func (s *scene) allKilled() {
	for _, replica := range s.replicas {
		replica.Kill()
	}
	s.away()
	since := s.datastore(s).Since
	for _, replica := range s.replicas {
		replica.Start()
	}
	s.arrives()
	require.True(s, s.datastore(s).Since.After(since))
}

// apiServerAway also starts the agent anew while there is no API server.
func (s *scene) apiServerAway() {
	s.arrives()
	require.NoError(s, s.Kill())
	s.agent.Restart()
	require.EventuallyWithT(s, func(c *assert.CollectT) {
		there := s.agent.Revisions()
		for _, row := range s.load.stays() {
			require.Contains(c, there, row)
		}
	}, patience, tick)
	s.still() // it is another process
	require.EventuallyWithT(s, func(c *assert.CollectT) { require.True(c, s.datastore(c).Connected) }, patience, tick)
	require.NoError(s, s.Restart(s.Context()))
	s.arrives()
}

// cacheAway keeps the cache away for as long as a fall-back would take to begin.
func (s *scene) cacheAway() {
	s.watchedBy(1 + replicaCount)
	for _, replica := range s.replicas {
		replica.Kill()
	}
	s.away()
	s.watchedBy(1)
	entries, lists := s.agent.Endpoints.NumObjects(s.agent.DB.ReadTxn()), s.requests()
	// Nothing is to happen for so long: there is no condition to wait for.
	looks := time.NewTicker(tick)
	defer looks.Stop()
	for over := time.Now().Add(3 * time.Second); (<-looks.C).Before(over); {
		require.Equal(s, everywhere(1), s.watches(s), "the agent watches nothing")
		require.Equal(s, entries, s.agent.Endpoints.NumObjects(s.agent.DB.ReadTxn()))
	}
	require.Equal(s, lists, s.requests(), "the agent lists nothing")
	for _, replica := range s.replicas {
		replica.Start()
	}
	s.arrives()
	s.watchedBy(1 + replicaCount)
}

// watchedBy waits until the API server serves so many watches of each resource: it is
// told of those that end, and counts them, in its own time.
func (s *scene) watchedBy(n int) {
	s.Helper()
	require.EventuallyWithT(s, func(c *assert.CollectT) { require.Equal(c, everywhere(n), s.watches(c)) }, patience, tick)
}

func (s *scene) connectionsBreak() {
	for range 10 {
		replica := s.replicas[s.reads()]
		replica.Cut()
		replica.Heal()
	}
	s.arrives()
}
