// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the server's own at one moment, under the names that operators
// know. What counts from the server's start is made one of a while by Since.
type Metrics struct {
	// CPUSeconds is process_cpu_seconds_total, in steps of 10 ms.
	CPUSeconds float64
	// ResidentBytes is process_resident_memory_bytes.
	ResidentBytes int64
	// Watches is apiserver_longrunning_requests of the verb WATCH, by resource: the
	// watches that are open, the server's own among them.
	Watches map[string]int
	// WatchEvents is apiserver_watch_events_total, by resource: what was sent to
	// watchers, the server's own among them.
	WatchEvents map[string]float64
	// Terminated is apiserver_terminated_watchers_total: the watches that were ended
	// since their clients didn't read fast enough.
	Terminated float64
	// requests is apiserver_request_duration_seconds without what lasts: the number
	// of requests that took no longer than a bound in seconds.
	requests map[float64]float64
}

// lasting are the verbs of requests that end when their client wants.
var lasting = []string{"WATCH", "WATCHLIST", "CONNECT"}

// Metrics reads the server's /metrics.
func (c *Clients) Metrics(ctx context.Context) (Metrics, error) {
	text, err := c.Kubernetes.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return Metrics{}, fmt.Errorf("reading metrics: %w", err)
	}
	return parseMetrics(bytes.NewReader(text))
}

// parseMetrics reads Prometheus' exposition format.
func parseMetrics(text io.Reader) (Metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return Metrics{}, fmt.Errorf("parsing metrics: %w", err)
	}
	m := Metrics{Watches: map[string]int{}, WatchEvents: map[string]float64{}, requests: map[float64]float64{}}
	for _, series := range families["process_cpu_seconds_total"].GetMetric() {
		m.CPUSeconds += series.GetCounter().GetValue()
	}
	for _, series := range families["process_resident_memory_bytes"].GetMetric() {
		m.ResidentBytes += int64(series.GetGauge().GetValue())
	}
	for _, series := range families["apiserver_longrunning_requests"].GetMetric() {
		if open := int(series.GetGauge().GetValue()); open > 0 && slices.Contains(lasting, label(series, "verb")) {
			m.Watches[label(series, "resource")] += open
		}
	}
	for _, series := range families["apiserver_watch_events_total"].GetMetric() {
		m.WatchEvents[label(series, "resource")] += series.GetCounter().GetValue()
	}
	for _, series := range families["apiserver_terminated_watchers_total"].GetMetric() {
		m.Terminated += series.GetCounter().GetValue()
	}
	for _, series := range families["apiserver_request_duration_seconds"].GetMetric() {
		if slices.Contains(lasting, label(series, "verb")) {
			continue
		}
		for _, bucket := range series.GetHistogram().GetBucket() {
			m.requests[bucket.GetUpperBound()] += float64(bucket.GetCumulativeCount())
		}
	}
	return m, nil
}

func label(series *dto.Metric, name string) string {
	for _, pair := range series.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

// Since is what was counted since before. ResidentBytes and Watches stay those of m.
func (m Metrics) Since(before Metrics) Metrics {
	since := Metrics{
		CPUSeconds: m.CPUSeconds - before.CPUSeconds, ResidentBytes: m.ResidentBytes, Watches: m.Watches,
		Terminated: m.Terminated - before.Terminated, WatchEvents: map[string]float64{}, requests: map[float64]float64{},
	}
	for resource, n := range m.WatchEvents {
		if n -= before.WatchEvents[resource]; n > 0 {
			since.WatchEvents[resource] = n
		}
	}
	for bound, n := range m.requests {
		since.requests[bound] = n - before.requests[bound]
	}
	return since
}

// WatchCount is the number of open watches.
func (m Metrics) WatchCount() (n int) {
	for _, open := range m.Watches {
		n += open
	}
	return n
}

// WatchEventCount is the number of events that were sent to watchers.
func (m Metrics) WatchEventCount() (n float64) {
	for _, sent := range m.WatchEvents {
		n += sent
	}
	return n
}

// RequestSeconds is a quantile of apiserver_request_duration_seconds, between 0
// and 1, with linear interpolation within a bucket, as Prometheus'
// histogram_quantile has it; 0 without requests.
func (m Metrics) RequestSeconds(quantile float64) float64 {
	bounds := make([]float64, 0, len(m.requests))
	for bound := range m.requests {
		bounds = append(bounds, bound)
	}
	slices.Sort(bounds)
	if len(bounds) == 0 || m.requests[bounds[len(bounds)-1]] == 0 {
		return 0
	}
	rank := quantile * m.requests[bounds[len(bounds)-1]]
	var low, below float64
	for _, bound := range bounds {
		if n := m.requests[bound]; n >= rank {
			if math.IsInf(bound, 1) || n == below {
				return low
			}
			return low + (bound-low)*(rank-below)/(n-below)
		}
		low, below = bound, m.requests[bound]
	}
	return low
}
