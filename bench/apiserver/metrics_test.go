// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const earlier = `# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 2e+08
# TYPE apiserver_longrunning_requests gauge
apiserver_longrunning_requests{resource="ciliumnodes",verb="WATCH"} 3
# TYPE apiserver_watch_events_total counter
apiserver_watch_events_total{resource="ciliumnodes"} 10
# TYPE apiserver_terminated_watchers_total counter
apiserver_terminated_watchers_total{resource="ciliumnodes"} 1
# TYPE apiserver_request_duration_seconds histogram
apiserver_request_duration_seconds_bucket{verb="GET",le="0.1"} 5
apiserver_request_duration_seconds_bucket{verb="GET",le="0.2"} 5
apiserver_request_duration_seconds_bucket{verb="GET",le="+Inf"} 5
apiserver_request_duration_seconds_sum{verb="GET"} 1
apiserver_request_duration_seconds_count{verb="GET"} 5
`

const later = `# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 4
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3e+08
# TYPE apiserver_longrunning_requests gauge
apiserver_longrunning_requests{resource="ciliumnodes",verb="WATCH",version="v2"} 3
apiserver_longrunning_requests{resource="ciliumnodes",verb="WATCH",version="v3"} 2
apiserver_longrunning_requests{resource="pods",verb="WATCH"} 0
apiserver_longrunning_requests{resource="pods",verb="POST"} 9
# TYPE apiserver_watch_events_total counter
apiserver_watch_events_total{resource="ciliumnodes"} 17
apiserver_watch_events_total{resource="ciliumendpoints"} 100
apiserver_watch_events_total{resource="leases"} 0
# TYPE apiserver_terminated_watchers_total counter
apiserver_terminated_watchers_total{resource="ciliumnodes"} 2
apiserver_terminated_watchers_total{resource="leases"} 3
# TYPE apiserver_request_duration_seconds histogram
apiserver_request_duration_seconds_bucket{verb="GET",le="0.1"} 95
apiserver_request_duration_seconds_bucket{verb="GET",le="0.2"} 105
apiserver_request_duration_seconds_bucket{verb="GET",le="+Inf"} 105
apiserver_request_duration_seconds_sum{verb="GET"} 1
apiserver_request_duration_seconds_count{verb="GET"} 105
apiserver_request_duration_seconds_bucket{verb="WATCH",le="0.1"} 0
apiserver_request_duration_seconds_bucket{verb="WATCH",le="+Inf"} 1000
apiserver_request_duration_seconds_sum{verb="WATCH"} 1
apiserver_request_duration_seconds_count{verb="WATCH"} 1000
`

func TestMetricsSince(t *testing.T) {
	before, err := parseMetrics(strings.NewReader(earlier))
	require.NoError(t, err)
	after, err := parseMetrics(strings.NewReader(later))
	require.NoError(t, err)
	m := after.Since(before)
	require.InDelta(t, 2.5, m.CPUSeconds, 1e-9)
	require.EqualValues(t, 3e8, m.ResidentBytes)
	require.Equal(t, map[string]int{"ciliumnodes": 5}, m.Watches, "POST isn't a watch")
	require.Equal(t, map[string]float64{"ciliumnodes": 7, "ciliumendpoints": 100}, m.WatchEvents)
	require.Equal(t, 5, m.WatchCount())
	require.InDelta(t, 4, m.Terminated, 0)
	require.InDelta(t, 107, m.WatchEventCount(), 0)
	// 90 of 100 requests took up to 0.1 s, the others up to 0.2 s.
	require.InDelta(t, 0.05, m.RequestSeconds(0.45), 1e-9)
	require.InDelta(t, 0.15, m.RequestSeconds(0.95), 1e-9)
	require.Zero(t, Metrics{}.RequestSeconds(0.5))
}
