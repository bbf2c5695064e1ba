// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what the read-through has done, as a collector for the program's registry.
type Metrics struct {
	requests *prometheus.CounterVec
	duration prometheus.Histogram
	inFlight prometheus.Gauge
	// cached are the answers that were given again, and asked what remote clusters were
	// asked: the difference of what was answered has joined a look-up under way.
	cached, asked prometheus.Counter
	// unreadable are the connections for which the certificates couldn't be read again.
	unreadable prometheus.Counter
}

const metricsPrefix = "waggle_kvstoremesh_ondemand_"

func newMetrics() *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + "requests_total",
			Help: "Look-ups of what remote clusters don't push, by what they have come to"}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricsPrefix + "request_duration_seconds",
			Help: "How long a look-up takes, the remote cluster's answer included",
			// From an answer that is at hand to one that doesn't come (limits.timeout).
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2}}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: metricsPrefix + "requests_in_flight",
			Help: "Look-ups that wait for an answer now"}),
		cached: prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + "cached_answers_total",
			Help: "Look-ups that were answered by what a remote cluster had said a moment before"}),
		asked: prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + "remote_requests_total",
			Help: "Questions that remote clusters were asked"}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + "certificate_errors_total",
			Help: "Connections for which the certificates couldn't be read again, and the earlier ones were used"}),
	}
	for _, outcome := range outcomes {
		m.requests.WithLabelValues(outcome) // 0 is something to tell as well
	}
	return m
}

// begin counts a request in, and out when the returned function is called.
func (m *Metrics) begin() (end func(outcome string)) {
	m.inFlight.Inc()
	began := time.Now()
	return func(outcome string) {
		m.inFlight.Dec()
		m.requests.WithLabelValues(outcome).Inc()
		m.duration.Observe(time.Since(began).Seconds())
	}
}

// beginMany is begin for n look-ups of one request, which end together; outcome is asked
// for that of each.
func (m *Metrics) beginMany(n int) (end func(outcome func(i int) string)) {
	m.inFlight.Add(float64(n))
	began := time.Now()
	return func(outcome func(i int) string) {
		m.inFlight.Sub(float64(n))
		took, counts := time.Since(began).Seconds(), map[string]int{}
		for i := range n {
			counts[outcome(i)]++
			m.duration.Observe(took)
		}
		for outcome, n := range counts {
			m.requests.WithLabelValues(outcome).Add(float64(n))
		}
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.inFlight, m.cached, m.asked, m.unreadable}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, one := range m.all() {
		one.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, one := range m.all() {
		one.Collect(ch)
	}
}
