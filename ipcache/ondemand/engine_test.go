// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
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

// TestRoom: how many lookups of a cluster begin, by what is under way and what waits.
func TestRoom(t *testing.T) {
	const cluster, other = 2, 3
	now := time.Now()
	for name, c := range map[string]struct {
		under   inFlight
		waiting int
		want    int
	}{
		"quiet":                         {inFlight{}, 1, batchLookups},
		"as many wait as are under way": {inFlight{1, 4, now}, 4, 0},
		"more wait than are under way":  {inFlight{1, 4, now}, 5, batchLookups},
		"they wait for long enough":     {inFlight{1, 4, now.Add(-nextBatch)}, 1, batchLookups},
		"more wait than a batch has":    {inFlight{1, batchLookups, now}, 500, 0},
		"nearly as many as are allowed": {inFlight{2, 190, now.Add(-nextBatch)}, 500, 10},
		"as many batches as may be":     {inFlight{maxBatches, maxBatches, now.Add(-nextBatch)}, 500, 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := &engine{
				settings: settings{config: Config{Concurrency: 200}},
				queue:    newQueue(1000, 1000), inFlight: map[uint32]inFlight{cluster: c.under}, tokens: make(chan struct{}, 1),
			}
			for n := range c.waiting {
				require.Nil(t, e.queue.push(queued(7, cluster, n)))
			}
			for n := range 300 {
				require.Nil(t, e.queue.push(queued(7, other, n)))
			}
			require.Equal(t, c.want, e.room(cluster, now))
			require.Equal(t, batchLookups, e.room(other, now), "nobody waits for another cluster's")
		})
	}
}
