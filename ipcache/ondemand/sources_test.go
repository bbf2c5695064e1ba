// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestRestartBeforeTheNodesAreThere has a process find what the one before it had the
// kernel look at, while one cluster's nodes are there already and another's come late.
func TestRestartBeforeTheNodesAreThere(t *testing.T) {
	f := prepare(t)
	f.leave("blue", blueID)
	done := f.writer.RegisterInitializer("late", wire.Nodes)
	require.NoError(t, f.kernel.SetCIDRs(map[netip.Prefix]uint32{
		netip.MustParsePrefix("10.3.0.0/24"): blueID, netip.MustParsePrefix("10.9.0.0/24"): 9,
	}))
	require.NoError(t, f.kernel.Follow(blueAddr))
	f.source.has(endpointAt(blueAddr, blueWebID))
	f.start()

	f.eventually(func(t *assert) { require.True(t, f.kernel.looksAt("10.2.0.0/24"), "what is known is added") })
	require.True(t, f.kernel.looksAt("10.3.0.0/24"), "what isn't known yet stays")
	f.join("green", 4, "10.4.0.0/24")
	f.eventually(func(t *assert) { require.True(t, f.kernel.looksAt("10.4.0.0/24")) })
	require.True(t, f.kernel.looksAt("10.3.0.0/24"))
	require.True(t, f.kernel.follows(blueAddr))
	require.Zero(t, f.source.asked.Load(), "nobody knows yet whose it is")

	f.join("blue", blueID, "10.3.0.0/24")
	f.do(done)
	f.requireResolved(blueAddr, blueWebID)
	f.eventually(func(t *assert) { require.False(t, f.kernel.looksAt("10.9.0.0/24"), "that cluster is gone") })
	require.True(t, f.kernel.looksAt("10.3.0.0/24"))
}

// TestKernelThatCannotTell isn't told to look at what is known alone.
func TestKernelThatCannotTell(t *testing.T) {
	f := prepare(t)
	done := f.writer.RegisterInitializer("late", wire.Nodes)
	require.NoError(t, f.kernel.SetCIDRs(map[netip.Prefix]uint32{netip.MustParsePrefix("10.9.0.0/24"): 9}))
	f.kernel.fail(errors.New("the map is away"))
	f.start()
	f.eventually(func(t *assert) { require.Contains(t, f.degraded("pod-cidrs"), "the map is away") })
	f.kernel.fail(nil)
	f.eventually(func(t *assert) {
		require.True(t, f.kernel.looksAt("10.2.0.0/24"), "it is told again")
		require.Empty(t, f.degraded("pod-cidrs"))
	})
	require.True(t, f.kernel.looksAt("10.9.0.0/24"))
	f.do(done)
}

// TestClusterThatClaimsTooMuch has one cluster's nodes publish more CIDRs than there is
// room for in the kernel.
func TestClusterThatClaimsTooMuch(t *testing.T) {
	f := setup(t)
	const perNode, nodes = 10_000, 4
	f.do(func(tx *state.Txn) {
		for n := range nodes {
			node := wire.Node{Name: fmt.Sprint("greedy", n), Cluster: "red", ClusterID: redID}
			for i := range perNode {
				node.PodCIDRs4 = append(node.PodCIDRs4, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(n), byte(i >> 7), byte(i << 1)}), 31))
			}
			tx.UpsertNode(f.writer.Origin("red", redID, state.SourceClusterMesh), node)
		}
	})
	excess := nodes*perNode + 1 - maxClaims // with the one of setup
	f.eventually(func(t *assert) {
		require.Contains(t, f.degraded("pod-cidrs"), fmt.Sprintf("%d of \"red\"", excess))
		f.kernel.mu.Lock()
		defer f.kernel.mu.Unlock()
		require.Len(t, f.kernel.cidrs, maxClaims+1)
	})
	require.Less(t, len(f.degraded("pod-cidrs")), 500)
	f.requireOwner(blueAddr.String(), "blue")
	list, err := (&Service{engine: f.engine}).List()
	require.NoError(t, err)
	require.Equal(t, []Excess{{"red", excess}}, list.Excess)

	f.do(func(tx *state.Txn) {
		for n := range nodes {
			tx.DeleteNode(f.writer.Origin("red", redID, state.SourceClusterMesh), "red", fmt.Sprint("greedy", n))
		}
	})
	f.eventually(func(t *assert) { require.Empty(t, f.degraded("pod-cidrs")) })
}

// TestSourcesRetry: what the kernel doesn't take is told ever more seldom, and not never.
func TestSourcesRetry(t *testing.T) {
	retry, last := newSourcesRetry(), time.Duration(0)
	for range 20 {
		last = retry.Step()
	}
	require.GreaterOrEqual(t, last, time.Minute)
	require.Less(t, last, 2*time.Minute)
}

func TestClusterWithoutNodesIsNotBlind(t *testing.T) {
	f := setup(t)
	f.do(func(tx *state.Txn) {
		tx.UpdateRemoteCluster("empty", func(row *state.RemoteCluster) {
			row.ClusterID = 5
			row.Resources[wire.Nodes] = state.ResourceState{Enabled: true, Synced: true}
		})
	})
	f.join("eni", 6)
	f.eventually(func(t *assert) { require.Contains(t, f.degraded("pod-cidrs"), "eni") })
	require.NotContains(t, f.degraded("pod-cidrs"), "empty")
	list, err := (&Service{engine: f.engine}).List()
	require.NoError(t, err)
	require.Equal(t, []string{"eni"}, list.Blind)
}
