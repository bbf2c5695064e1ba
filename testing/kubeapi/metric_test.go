// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSumSeries(t *testing.T) {
	const text = `
# TYPE requests counter
requests{verb="GET",code="200"} 3
requests{verb="GET",code="404"} 2
requests{verb="LIST",code="200"} 7
# TYPE memory gauge
memory 42
# TYPE latency histogram
latency_bucket{verb="GET",le="1"} 4
latency_bucket{verb="GET",le="+Inf"} 5
latency_sum{verb="GET"} 9.5
latency_count{verb="GET"} 5
`
	for name, test := range map[string]struct {
		metric string
		labels map[string]string
		want   float64
		absent bool
	}{
		"all series":        {metric: "requests", want: 12},
		"one label":         {metric: "requests", labels: map[string]string{"verb": "GET"}, want: 5},
		"two labels":        {metric: "requests", labels: map[string]string{"verb": "GET", "code": "404"}, want: 2},
		"another value":     {metric: "requests", labels: map[string]string{"verb": "WATCH"}, want: 0},
		"no labels":         {metric: "memory", want: 42},
		"histogram":         {metric: "latency", labels: map[string]string{"verb": "GET"}, want: 5},
		"no such metric":    {metric: "reqests", absent: true},
		"no such label":     {metric: "requests", labels: map[string]string{"vreb": "GET"}, absent: true},
		"one label of many": {metric: "requests", labels: map[string]string{"verb": "GET", "host": ""}, absent: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sumSeries(strings.NewReader(text), test.metric, test.labels)
			if test.absent {
				require.ErrorIs(t, err, ErrNoMetric)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}
