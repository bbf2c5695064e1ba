// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

func counterValue(c prometheus.Counter) int {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return int(m.GetCounter().GetValue())
}

func TestMissIsResolved(t *testing.T) {
	f := setup(t)
	f.source.has(endpointAt(podAddr, webID))
	f.miss(to(podAddr))
	f.requireResolved(podAddr, webID)
	f.eventually(func(t *assert) {
		require.Equal(t, 1, f.count(bpf.SideDestination, "local"))
		require.True(t, f.kernel.follows(podAddr))
		row := f.row(podAddr)
		require.NotNil(t, row)
		require.Equal(t, "local", row.From)
	})

	// The map may be behind the tables.
	f.miss(to(podAddr))
	f.eventually(func(t *assert) { require.Equal(t, 1, f.count(bpf.SideDestination, OutcomeTable)) })
	require.EqualValues(t, 1, f.source.asked.Load())
}

// TestRoom: how many lookups of a cluster begin, by what is under way and what waits, and
// whether the others are thought of again.
func TestRoom(t *testing.T) {
	const cluster, far, concurrency = 2, 3, 200
	now := time.Now()
	for name, c := range map[string]struct {
		under   inFlight
		waiting int
		want    int
		ofFar   int
	}{
		"quiet":                           {inFlight{}, 1, batchLookups, batchLookups},
		"as many wait as are under way":   {inFlight{1, 4, now}, 4, 0, 0},
		"more wait than are under way":    {inFlight{1, 4, now}, 5, batchLookups, 0},
		"they wait for long enough":       {inFlight{1, 4, now.Add(-nextBatch)}, 1, batchLookups, batchLookups},
		"more wait than a batch has":      {inFlight{1, batchLookups, now}, 500, 0, 0},
		"more wait than are allowed":      {inFlight{1, 101, now}, 500, 0, 0},
		"as many as are allowed, nearly":  {inFlight{2, 190, now.Add(-nextBatch)}, 500, 10, 10},
		"as many batches as may be":       {inFlight{maxBatches, maxBatches, now.Add(-nextBatch)}, 500, 0, 0},
		"as many batches as may be, soon": {inFlight{maxBatches, maxBatches, now}, 500, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := &engine{
				settings: settings{config: Config{Concurrency: concurrency}},
				queue:    newQueue(2000, 2000), tokens: make(chan struct{}, 1),
				inFlight: map[uint32]inFlight{cluster: c.under, far: c.under}, near: map[uint32]struct{}{cluster: {}},
			}
			for n := range c.waiting {
				require.Nil(t, e.queue.push(queued(7, cluster, n)))
				require.Nil(t, e.queue.push(queued(7, far, n)))
			}
			require.Equal(t, c.want, e.room(cluster, now))
			if c.under.batches < maxBatches && c.want == 0 {
				require.True(t, e.held)
				<-e.tokens
			}
			require.Equal(t, c.ofFar, e.room(far, now))
		})
	}
}

// TestManyBeginBesideFew: what a near cluster is asked beside less is one request.
func TestManyBeginBesideFew(t *testing.T) {
	f := setup(t, patient)
	asked, answer := f.held()
	f.miss(to(podAddr))
	<-asked
	f.engine.mu.Lock()
	for id := range f.engine.inFlight {
		f.engine.near[id] = struct{}{}
	}
	f.engine.mu.Unlock()
	var misses []bpf.Miss
	for n := range byte(5) {
		misses = append(misses, to(netip.AddrFrom4([4]byte{10, 2, 0, 100 + n})))
	}
	f.miss(misses...)
	f.eventually(func(t *assert) { require.EqualValues(t, 6, f.source.asked.Load()) })
	require.EqualValues(t, 2, f.source.requests.Load())
	close(answer)
}

// TestNear: a cluster is near by its last answer: not if that took its time, nor if there
// was none.
func TestNear(t *testing.T) {
	f := setup(t, patient)
	next := byte(0)
	isNear := func() bool {
		next++
		f.resolve(netip.AddrFrom4([4]byte{10, 2, 0, next}))
		f.engine.mu.Lock()
		defer f.engine.mu.Unlock()
		return len(f.engine.near) == 1
	}
	for _, answer := range []func() (Answer, error){
		func() (Answer, error) { return Answer{}, ErrUnavailable },
		func() (Answer, error) {
			<-time.After(nextBatch) // it is that far
			return Answer{}, ErrNotFound
		},
	} {
		f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrNotFound })
		require.Eventually(t, isNear, patience, tick)
		f.source.answer(func(context.Context, Question) (Answer, error) { return answer() })
		require.False(t, isNear())
	}
}
