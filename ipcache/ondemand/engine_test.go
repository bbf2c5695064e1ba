// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"testing"

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
