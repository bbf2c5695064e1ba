// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// TestScan has one pod try addresses that don't exist, of a cluster that answers none of
// the lookups before the test lets it.
func TestScan(t *testing.T) {
	const scanned = 100_000
	f := setup(t, patient, func(s *settings) {
		s.config.Concurrency = 4
		s.flagCIDRs = []flagCIDR{{"red", netip.MustParsePrefix("10.128.0.0/9")}}
	})
	f.requireOwner("10.200.0.1", "red")
	let := make(chan struct{})
	var genuine atomic.Int64
	f.source.answer(func(ctx context.Context, q Question) (Answer, error) {
		select {
		case <-let:
		case <-ctx.Done():
		}
		if q.Addr == podAddr || q.Cluster == "blue" {
			genuine.Add(1)
			id := webID
			if q.Cluster == "blue" {
				id = blueWebID
			}
			return Answer{Endpoint: new(endpointAt(q.Addr, id)), Identities: []wire.Identity{identityOf(q.Cluster, id)}}, nil
		}
		return Answer{}, ErrNotFound
	})

	batch := make([]bpf.Miss, 0, 1000)
	for n := range scanned {
		batch = append(batch, to(netip.AddrFrom4([4]byte{10, 200 + byte(n>>16), byte(n >> 8), byte(n)})))
		if len(batch) == cap(batch) {
			f.miss(batch...)
			batch = make([]bpf.Miss, 0, 1000) // the other one is the reader's now
		}
	}
	e := f.engine
	waiting := func() int {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.queue.len()
	}
	f.eventually(func(t *assert) {
		require.Equal(t, scanned-interfaceLimit-4, counterValue(e.metrics.drops))
		require.EqualValues(t, 4, f.source.asked.Load())
	})
	require.Equal(t, interfaceLimit, waiting())
	require.Equal(t, scanned-interfaceLimit-4, f.count(bpf.SideDestination, OutcomeDropped))

	// A genuine miss of another interface is next but for those that are under way; and
	// one of another cluster needn't wait at all.
	other := to(podAddr)
	other.Interface = otherPod
	blue := to(blueAddr)
	blue.Interface = otherPod
	f.miss(other, blue)
	f.eventually(func(t *assert) { require.EqualValues(t, 5, f.source.asked.Load()) })
	// Those under way, the genuine one, and at most one of the scan in between.
	for range 4 + 1 + 1 + 1 {
		let <- struct{}{}
	}
	f.eventually(func(t *assert) { require.Positive(t, genuine.Load()) })

	close(let)
	f.requireResolved(podAddr, webID)
	f.requireResolved(blueAddr, blueWebID)
	f.eventually(func(t *assert) { require.Zero(t, waiting()) })
	f.eventually(func(t *assert) {
		require.Equal(t, scanned, f.count(bpf.SideDestination, OutcomeDropped)+f.count(bpf.SideDestination, OutcomeNegative))
	})
}

func TestLookupRate(t *testing.T) {
	f := setup(t, func(s *settings) { s.config.LookupRate = 1 })
	var misses []bpf.Miss
	for n := range 2 * lookupBurst {
		misses = append(misses, to(netip.AddrFrom4([4]byte{10, byte(2 + n/256), 0, byte(n)})))
	}
	f.miss(misses...)
	f.eventually(func(t *assert) {
		require.Equal(t, lookupBurst, f.count(bpf.SideDestination, OutcomeNegative))
	})
	f.eventually(func(t *assert) { require.Greater(t, f.count(bpf.SideDestination, OutcomeNegative), lookupBurst) })
	require.Less(t, f.source.asked.Load(), int64(lookupBurst+100), "a second for each")
}

// TestFarCluster: nobody waits for the answer to what others have asked before.
func TestFarCluster(t *testing.T) {
	f := setup(t, patient)
	f.requireOwner("10.2.0.1", "red")
	let := make(chan struct{})
	f.source.answer(func(ctx context.Context, q Question) (Answer, error) {
		select {
		case <-let:
		case <-ctx.Done():
		}
		return Answer{Endpoint: new(endpointAt(q.Addr, webID)), Identities: []wire.Identity{identityOf("red", webID)}}, nil
	})
	addrs := []string{"10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4"}
	for i, addr := range addrs {
		f.miss(to(netip.MustParseAddr(addr)))
		f.eventually(func(t *assert) { require.EqualValues(t, i+1, f.source.asked.Load()) })
	}
	close(let)
	for _, addr := range addrs {
		f.requireResolved(netip.MustParseAddr(addr), webID)
	}
}
