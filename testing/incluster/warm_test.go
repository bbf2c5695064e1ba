// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package incluster

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// TestWarmStart kills agents for real while the cluster changes, and starts others
// from what they have left. Each time the new one's tables come to what Kubernetes
// holds, deletions in the meantime included, and lose no row on the way that stayed.
func TestWarmStart(t *testing.T) {
	r := newRig(t)
	for name, test := range map[string]struct {
		meanwhile func(*warmScene)
		// restored: the new agent begins with rows.
		restored  bool
		started   string
		discarded string
	}{
		"with the snapshot":                {restored: true, started: "resumed"},
		"without a snapshot":               {meanwhile: (*warmScene).lose},
		"with a snapshot that is cut off":  {meanwhile: (*warmScene).cutOff, discarded: "torn"},
		"with a snapshot of flipped bytes": {meanwhile: (*warmScene).flip, discarded: "torn"},
		"with another cluster's snapshot":  {meanwhile: (*warmScene).swap, discarded: `of cluster "elsewhere", ID 0, and this is "default"`},
		"at an etcd that was compacted":    {meanwhile: (*warmScene).compact, restored: true, started: "relisted-compacted"},
		"at another etcd":                  {meanwhile: (*warmScene).renew, restored: true, started: "relisted-other-etcd"},
	} {
		t.Run(name, func(t *testing.T) {
			s := r.warmScene(t)
			stop := s.load.run(t)
			doomed := s.load.addPod(t)
			s.cached(doomed)
			s.victim.kept()
			s.victim.kept() // the agent may have been a moment behind
			s.victim.kill()
			// Nobody will tell of this but history, or what isn't in a list.
			require.NoError(t, s.load.clients.DeleteEndpoint(t.Context(), &doomed))
			if test.meanwhile != nil {
				test.meanwhile(s)
			}
			s.agent.Start()
			snapshot := s.datastore(t).Snapshot
			if test.restored {
				require.Greater(t, snapshot.Restored, len(s.load.stays()))
			} else {
				require.Zero(t, snapshot.Restored)
			}
			if test.discarded == "" {
				require.Empty(t, snapshot.Discarded)
			} else {
				require.Contains(t, snapshot.Discarded, test.discarded)
			}
			s.arrives()
			stop()
			s.requireTruth()
			s.requireUnbroken()
			if !test.restored {
				return
			}
			// It was restored, since it was seen to go.
			require.Contains(t, s.agent.Followers()[0].Gone(), "endpoints "+doomed.Prefix.String())
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				started := s.datastore(c).Snapshot.Started
				require.Equal(c, test.started, started[wire.Endpoints])
				require.Len(c, started, len(wire.CacheResources))
			}, patience, tick)
		})
	}
}

// warmScene is a cache, an agent that is to be killed, and one to come after it.
type warmScene struct {
	*scene
	victim *victim
}

func (r *rig) warmScene(t *testing.T) *warmScene {
	s := &warmScene{scene: &scene{T: t, rig: r}}
	s.replicas = []*mesh.Cache{r.cluster.NewCacheFrom(t, r.flags())}
	s.replicas[0].Start()
	s.agent = r.cluster.NewLocalAgent(t, "node-1", nil, s.replicas, r.flags())
	s.victim = startVictim(t, s.agent, "node-1")
	// The one that comes after it has the same directory.
	s.agent = r.cluster.NewLocalAgent(t, "node-1", nil, s.replicas, r.flags(), mesh.Flags{"state-dir": s.victim.dir})
	s.agent.FollowEach(t)
	return s
}

func (s *warmScene) lose() { require.NoError(s, os.Remove(s.victim.path())) }

func (s *warmScene) damage(how func([]byte) []byte) {
	content, err := os.ReadFile(s.victim.path())
	require.NoError(s, err)
	require.NoError(s, os.WriteFile(s.victim.path(), how(content), 0o600))
}

func (s *warmScene) cutOff() {
	s.damage(func(content []byte) []byte { return content[:rand.IntN(len(content))] })
}

func (s *warmScene) flip() {
	s.damage(func(content []byte) []byte {
		for range 10 {
			// Behind the version, which would make it another one's.
			content[100+rand.IntN(len(content)-100)] ^= byte(1 + rand.IntN(255))
		}
		return content
	})
}

// swap has the snapshot of an agent of another cluster in the place of the own one.
func (s *warmScene) swap() {
	elsewhere := &mesh.Cluster{Name: "elsewhere"}
	cache := elsewhere.NewCacheFrom(s.T, s.flags())
	cache.Start()
	other := startVictim(s.T, elsewhere.NewLocalAgent(s.T, "node-1", nil, []*mesh.Cache{cache}, s.flags()), "node-1")
	other.kept()
	other.kill()
	content, err := os.ReadFile(other.path())
	require.NoError(s, err)
	s.damage(func([]byte) []byte { return content })
}

// compact has the etcd forget what it was since the snapshot.
func (s *warmScene) compact() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.replicas[0].URL()}})
	require.NoError(s, err)
	defer client.Close()
	// The deletion has to be there first.
	s.settled(client)
	resp, err := client.Get(s.Context(), "x")
	require.NoError(s, err)
	_, err = client.Compact(s.Context(), resp.Header.Revision)
	require.NoError(s, err)
}

// cached waits until the cache has a pod.
func (s *warmScene) cached(pod wire.Endpoint) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.replicas[0].URL()}})
	require.NoError(s, err)
	defer client.Close()
	key := wire.StatePrefix(wire.Endpoints, s.cluster.Name) + wire.EndpointKey(pod.Prefix)
	require.Eventually(s, func() bool {
		resp, err := client.Get(context.Background(), key)
		return err == nil && len(resp.Kvs) == 1
	}, patience, tick)
}

// settled waits until a pod that is created now is in the etcd.
func (s *warmScene) settled(client *clientv3.Client) {
	pod := s.load.addPod(s.T)
	defer s.load.giveUp(pod)
	key := wire.StatePrefix(wire.Endpoints, s.cluster.Name) + wire.EndpointKey(pod.Prefix)
	require.Eventually(s, func() bool {
		resp, err := client.Get(context.Background(), key)
		return err == nil && len(resp.Kvs) == 1
	}, patience, tick)
}

// renew replaces the replica by one with an empty etcd.
func (s *warmScene) renew() {
	s.replicas[0].Kill()
	s.replicas[0].Start()
}
