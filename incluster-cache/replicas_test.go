// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/kubernetes/reading"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	simulatedAgents   = 300
	simulatedReplicas = 3
	// evenness is the most agents of one replica, as a multiple of the mean.
	evenness = 1.3
)

// simulation is agents that choose among replicas by what their tables say of the
// cache's Service, which is the same for all.
type simulation struct {
	*testing.T
	writer *state.Writer
	origin *state.Origin
	agents []*follower
	// reads is what each agent reads.
	reads []string
}

func newSimulation(t *testing.T, seed int, addresses []string) *simulation {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	s := &simulation{T: t, writer: writer, origin: writer.Origin("default", 0, state.SourceLocal),
		reads: make([]string, simulatedAgents)}
	for i := range simulatedAgents {
		of, ok := parseService("https://cache.kube-system.svc")
		require.True(t, ok)
		of.backends = reading.ServiceBackends{PortName: "etcd", Addresses: addresses}
		s.agents = append(s.agents, &follower{
			node: fmt.Sprintf("node-%d-%d", seed, i),
			directory: &directory{
				log: slog.New(slog.DiscardHandler), cluster: ownCluster,
				db: db, services: writer.Tables().Services, named: []*service{of},
			},
		})
		s.reads[i] = s.agents[i].order()[0].address
	}
	return s
}

// publish has the cache tell its agents which replicas are ready.
func (s *simulation) publish(addresses []string) {
	row := &wire.Service{Cluster: "default", Namespace: "kube-system", Name: "cache"}
	row.Backends = backendsOf("etcd", addresses)
	tx := s.writer.Begin()
	tx.UpsertService(s.origin, row)
	tx.Commit()
}

// lose has the agents of a replica go on to another, by what they know.
func (s *simulation) lose(address string) {
	for i, agent := range s.agents {
		if s.reads[i] == address {
			agent.last = address
			s.reads[i] = agent.order()[0].address
			require.NotEqual(s, address, s.reads[i])
		}
	}
}

// rebalance is what each agent does once in an interval; it gives how many moved.
func (s *simulation) rebalance() (moves int) {
	for i, agent := range s.agents {
		agent.directory.follow()
		agent.last = ""
		if first := agent.order()[0].address; first != s.reads[i] {
			s.reads[i] = first
			moves++
		}
	}
	return moves
}

// requireEven checks that these replicas, and no others, have all agents, evenly.
func (s *simulation) requireEven(addresses []string) {
	s.Helper()
	counts := map[string]int{}
	for _, address := range s.reads {
		counts[address]++
	}
	require.Len(s, counts, len(addresses), counts)
	mean := float64(simulatedAgents) / float64(len(addresses))
	for _, address := range addresses {
		require.Less(s, float64(counts[address])/mean, evenness, counts)
	}
}

// TestSpread: of many agents each replica has as many as the others, after one died
// and after it came back under another address; and no agent moves but to or from
// the one that did.
func TestSpread(t *testing.T) {
	for seed := range 20 {
		addresses := make([]string, simulatedReplicas)
		for i := range addresses {
			addresses[i] = net.JoinHostPort(fmt.Sprintf("10.%d.%d.7", seed, i), "2379")
		}
		s := newSimulation(t, seed, addresses)
		s.publish(addresses)
		require.Zero(t, s.rebalance())
		s.requireEven(addresses)

		left := addresses[1:]
		s.lose(addresses[0])
		s.requireEven(left)
		s.publish(left)
		require.Zero(t, s.rebalance(), "nobody else has a reason to move")

		back := append([]string{net.JoinHostPort(fmt.Sprintf("10.%d.9.7", seed), "2379")}, left...)
		s.publish(back)
		require.Less(t, s.rebalance(), simulatedAgents/2)
		s.requireEven(back)
		require.Zero(t, s.rebalance())
	}
}

// TestOrderIsStable: the order doesn't depend on that of the configuration, and of
// two replicas not on a third.
func TestOrderIsStable(t *testing.T) {
	replicas := []replica{{address: "a:1"}, {address: "b:1"}, {address: "c:1"}, {address: "d:1"}}
	want := ranked("node", replicas)
	slices.Reverse(replicas)
	require.Equal(t, want, ranked("node", replicas))
	for i := range want {
		without := slices.Delete(slices.Clone(want), i, i+1)
		require.Equal(t, without, ranked("node", without))
	}
}
