// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/bench/follower"
)

// TestDeliveries has one agent that saw every state, and one that saw only the
// last one of a pod.
func TestDeliveries(t *testing.T) {
	b := newBook()
	pod, other := follower.EndpointObject("a", "pod"), follower.EndpointObject("a", "other")
	b.have(other, follower.EndpointMark("a", "other", 1))
	first, second := follower.EndpointMark("a", "pod", 1), follower.EndpointMark("a", "pod", 2)
	for _, mark := range []follower.Mark{first, second} {
		n := b.give(pod, mark)
		b.sent(n)
		b.accepted(n)
	}
	n := b.give(other, other.Gone())
	b.sent(n)
	b.accepted(n)
	sum, rows := b.content()
	require.Equal(t, second, sum, "one is left")
	require.Equal(t, 1, rows)

	d, err := b.deliveries()
	require.NoError(t, err)
	at := d.writes[2].sent.Add(10 * time.Second)
	gone := follower.Arrival{Mark: other.Gone(), At: at}
	require.NoError(t, d.add([]follower.Arrival{{Mark: first, At: at}, {Mark: second, At: at.Add(time.Second)}, gone}))
	require.Zero(t, d.overtaken)
	require.NoError(t, d.add([]follower.Arrival{{Mark: second, At: at.Add(20 * time.Second)}, gone}))
	require.Equal(t, 1, d.overtaken)
	require.Equal(t, at.Add(20*time.Second), d.last)
	h := hdrhistogram.Import(d.all.Export())
	require.EqualValues(t, 6, h.TotalCount())
	require.InDelta(t, 30*time.Second.Microseconds(), h.Max(), 1e5)
	require.ErrorContains(t, d.add([]follower.Arrival{{Mark: second, At: at}}), "agent 3 never had write 3 of 3")

	b.give(pod, first)
	_, err = b.deliveries()
	require.ErrorContains(t, err, "no telling when it arrived")
}

// TestWorld makes changes without an API server: they keep to what they say.
func TestWorld(t *testing.T) {
	const pods, changes = 100, 400
	w := newWorld(pods, 3, podChangesWithin(changes), 1, false)
	require.NoError(t, w.cluster.mesh.Validate())
	for i := range pods {
		e := w.endpoint(i)
		w.book.have(follower.EndpointObject(e.Namespace, e.Pod), follower.EndpointMark(e.Namespace, e.Pod, e.Identity))
	}
	for range changes {
		w.changePod()
	}
	for range 50 {
		w.changeService()
	}
	_, err := w.book.deliveries()
	require.NoError(t, err, "each write says something else")
	require.Len(t, w.pods, pods+changes*9/20)
	require.Equal(t, changes*9/20, w.podsGone)
	require.Equal(t, 5, w.servicesGone)
	require.Len(t, w.services, fewestServices+5)
	identities := 0
	for _, write := range w.book.writes {
		for pod := jobShare - 1; pod < len(w.pods); pod += jobShare {
			if write.object == follower.IdentityObject(w.firstIdentity(pod)) {
				identities++
				require.Equal(t, w.labelsOf(w.firstIdentity(pod))["k8s:batch.kubernetes.io/job-name"], w.endpoint(pod).Pod)
			}
		}
	}
	require.Equal(t, 3+3, identities, "brought and taken away")
}

// TestWritesOfOneObjectFollowEachOther gives out two writes of one object, and has
// the second one begin before the first has ended.
func TestWritesOfOneObjectFollowEachOther(t *testing.T) {
	w := newWorld(100, 1, 10, 1, false)
	pod := follower.EndpointObject("a", "pod")
	release, order := make(chan struct{}), make(chan int, 2)
	first := w.give(pod, follower.EndpointMark("a", "pod", 1), func(context.Context) error { <-release; order <- 1; return nil })
	second := w.give(pod, follower.EndpointMark("a", "pod", 2), func(context.Context) error { order <- 2; return nil })
	ended := make(chan error, 2)
	go func() { ended <- second(t.Context()) }()
	go func() { ended <- first(t.Context()) }()
	close(release)
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
	require.Equal(t, 1, <-order)
	require.Equal(t, 2, <-order)
}
