// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func queued(iface, cluster uint32, n int) *lookup {
	return &lookup{iface: iface, question: Question{
		ClusterID: cluster, Addr: netip.AddrFrom4([4]byte{10, byte(cluster), byte(n >> 8), byte(n)})}}
}

func anyCluster(uint32) bool { return true }

func TestQueueServesInterfacesInTurn(t *testing.T) {
	q := newQueue(1000, 100)
	for n := range 100 {
		require.Nil(t, q.push(queued(7, 2, n)))
	}
	require.NotNil(t, q.push(queued(7, 2, 200)), "its line is full")
	genuine := queued(8, 2, 300)
	require.Nil(t, q.push(genuine))
	first, _ := q.next(anyCluster)
	require.EqualValues(t, 7, first.iface)
	second, _ := q.next(anyCluster)
	require.Same(t, genuine, second, "a scan of another interface is before it only once")
}

func TestQueuePassesOverBusyClusters(t *testing.T) {
	q := newQueue(1000, 100)
	for n := range 50 {
		q.push(queued(7, 2, n))
	}
	other := queued(7, 3, 300)
	q.push(other)
	got, ok := q.next(func(cluster uint32) bool { return cluster == 3 })
	require.True(t, ok)
	require.Same(t, other, got)
	_, ok = q.next(func(cluster uint32) bool { return cluster == 3 })
	require.False(t, ok)
	require.Equal(t, 50, q.len())
}

func TestQueueLongestLineGivesWay(t *testing.T) {
	q := newQueue(10, 8)
	for n := range 8 {
		q.push(queued(7, 2, n))
	}
	q.push(queued(8, 2, 100))
	q.push(queued(8, 2, 101))
	require.True(t, q.full(9))
	dropped := q.push(queued(9, 2, 200))
	require.EqualValues(t, 7, dropped.iface)
	_, waits := q.get(dropped.question.Addr)
	require.False(t, waits)
	_, waits = q.get(queued(9, 2, 200).question.Addr)
	require.True(t, waits)
	require.Equal(t, 10, q.len())
}

// TestQueueIsBoundedAndFair draws what arrives and what is ready, and holds the queue to
// what it says: bounds, one lookup for an address, age within an interface and cluster,
// and that no interface is served twice while one that could be served waits.
func TestQueueIsBoundedAndFair(t *testing.T) {
	const limit, perInterface, interfaces, clusters = 12, 5, 4, 3
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(limit, perInterface)
		var model []*lookup                   // oldest first
		passed := map[uint32]map[uint32]int{} // by interface, how often others were served since it waits
		remove := func(l *lookup) { model = slices.DeleteFunc(model, func(o *lookup) bool { return o == l }) }
		count := func(iface uint32) (n int) {
			for _, l := range model {
				if l.iface == iface {
					n++
				}
			}
			return n
		}
		number := 0
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				number++
				l := queued(rapid.Uint32Range(1, interfaces).Draw(t, "interface"), rapid.Uint32Range(1, clusters).Draw(t, "cluster"), number)
				before := count(l.iface)
				dropped := q.push(l)
				if before == 0 && len(model) < limit {
					require.Nil(t, dropped)
				}
				if dropped != nil && dropped != l {
					require.Greater(t, count(dropped.iface), before+1, "the one that gives way isn't the shorter one after")
				}
				if dropped != l {
					model = append(model, l)
				}
				if dropped != nil {
					remove(dropped)
				}
			},
			"next": func(t *rapid.T) {
				ready := map[uint32]bool{}
				for c := range uint32(clusters) {
					ready[c+1] = rapid.Bool().Draw(t, "ready")
				}
				can := func(l *lookup) bool { return ready[l.question.ClusterID] }
				l, ok := q.next(func(c uint32) bool { return ready[c] })
				require.Equal(t, slices.ContainsFunc(model, can), ok)
				if !ok {
					return
				}
				require.True(t, can(l))
				oldest := slices.IndexFunc(model, func(o *lookup) bool {
					return o.iface == l.iface && o.question.ClusterID == l.question.ClusterID
				})
				require.Same(t, model[oldest], l)
				remove(l)
				passed[l.iface] = nil
				for iface := uint32(1); iface <= interfaces; iface++ {
					could := slices.ContainsFunc(model, func(o *lookup) bool { return o.iface == iface && can(o) })
					if iface == l.iface || !could {
						continue
					}
					if passed[iface] == nil {
						passed[iface] = map[uint32]int{}
					}
					passed[iface][l.iface]++
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(model), q.len())
				require.LessOrEqual(t, q.len(), limit)
				waiting := map[uint32]int{}
				for _, l := range model {
					waiting[l.question.ClusterID]++
				}
				require.Equal(t, waiting, q.waiting)
				for iface := uint32(1); iface <= interfaces; iface++ {
					n := count(iface)
					require.LessOrEqual(t, n, perInterface)
					if n == 0 {
						passed[iface] = nil
					}
					for by, times := range passed[iface] {
						require.LessOrEqual(t, times, 1, "%d was served twice while %d could have been", by, iface)
					}
				}
				for _, l := range model {
					got, ok := q.get(l.question.Addr)
					require.True(t, ok)
					require.Same(t, l, got)
				}
			},
		})
	})
}
