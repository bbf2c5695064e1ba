// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

// What became of an entry whose time was over, beside what lookups have as outcomes.
const (
	outcomeUnused    Outcome = "unused"
	outcomeTakenOver Outcome = "pushed"
)

// Metrics count what an engine does. As a prometheus.Collector they also have what the
// engine and the kernel say when they are asked.
type Metrics struct {
	misses        *prometheus.CounterVec
	revalidations *prometheus.CounterVec
	durations     prometheus.Histogram
	drops         prometheus.Counter
	foreign       prometheus.Counter
	// bySide are the counters of misses, found without making a string of labels.
	bySide [bpf.SideSource + 1]map[Outcome]prometheus.Counter

	engine *engine // nil where the feature is off
}

func newMetrics() *Metrics {
	m := &Metrics{
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "waggle_ondemand_misses_total",
			Help: "Signals of the kernel, by the side of the packet that isn't known and by who knew it, or why it isn't known",
		}, []string{"side", "outcome"}),
		revalidations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "waggle_ondemand_revalidations_total",
			Help: "Entries whose time was over, by what became of them",
		}, []string{"outcome"}),
		durations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "waggle_ondemand_resolution_duration_seconds",
			Help:    "From the packet that missed to the entry in the tables",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13), // to 2 s
		}),
		drops: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "waggle_ondemand_dropped_lookups_total",
			Help: "Lookups that weren't made since too many waited",
		}),
		foreign: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "waggle_ondemand_foreign_identities_total",
			Help: "Packets whose tunnel header has an identity that isn't one of the cluster of their address",
		}),
	}
	for side := range m.bySide {
		m.bySide[side] = map[Outcome]prometheus.Counter{}
	}
	for _, o := range []Outcome{OutcomeTable, OutcomeNegative, OutcomeTimeout, OutcomeRefused, OutcomeUnavailable} {
		m.expect(o)
	}
	m.expectMisses(OutcomeDropped)
	for _, o := range []Outcome{outcomeUnused, outcomeTakenOver} {
		m.revalidations.WithLabelValues(string(o))
	}
	return m
}

// expect has an outcome of lookups told before there is one: from 0 on a rate can be seen.
func (m *Metrics) expect(o Outcome) {
	m.expectMisses(o)
	m.revalidations.WithLabelValues(string(o))
}

func (m *Metrics) expectMisses(o Outcome) {
	for side := bpf.Side(1); int(side) < len(m.bySide); side++ {
		m.bySide[side][o] = m.misses.WithLabelValues(side.String(), string(o))
	}
}

// follow has an engine counted, before it runs.
func (m *Metrics) follow(e *engine) {
	for _, r := range e.chain.others {
		m.expect(Outcome(r.Name()))
	}
	m.engine = e
}

func (m *Metrics) miss(side bpf.Side, outcome Outcome, n uint64) {
	if n == 0 || side == 0 {
		return
	}
	counter, ok := m.bySide[side][outcome]
	if !ok {
		counter = m.misses.WithLabelValues(side.String(), string(outcome))
	}
	counter.Add(float64(n))
}

func (m *Metrics) again(outcome Outcome)    { m.revalidations.WithLabelValues(string(outcome)).Inc() }
func (m *Metrics) duration(d time.Duration) { m.durations.Observe(d.Seconds()) }
func (m *Metrics) dropped()                 { m.drops.Inc() }
func (m *Metrics) foreignIdentity()         { m.foreign.Inc() }

var (
	entriesDesc = prometheus.NewDesc("waggle_ondemand_entries",
		"What lookups have brought and is kept: endpoints, identities that packets carry, and absent addresses", []string{"kind"}, nil)
	waitingDesc = prometheus.NewDesc("waggle_ondemand_waiting_lookups", "Lookups that wait for their turn", nil, nil)
	refusedDesc = prometheus.NewDesc("waggle_ondemand_refused_cidrs",
		"Pod CIDRs that aren't used: clusters contradict each other, or one claims what isn't for pods, or too many", nil, nil)
	packetsDesc = prometheus.NewDesc("waggle_ondemand_packets_total",
		"Packets that the programs have looked at, by whether their remote pod is known", []string{"result"}, nil)
	signalsDesc = prometheus.NewDesc("waggle_ondemand_signals_total",
		"Misses by whether the kernel gave a signal, or why it didn't", []string{"result"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
	for _, desc := range []*prometheus.Desc{entriesDesc, waitingDesc, refusedDesc, packetsDesc, signalsDesc} {
		ch <- desc
	}
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.misses, m.revalidations, m.durations, m.drops, m.foreign}
}

// Collect implements prometheus.Collector. Where the feature is off there is nothing.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	if m.engine == nil {
		return
	}
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	e := m.engine
	e.mu.Lock()
	endpoints, identities, absent := e.entries.addresses.Len(), e.entries.identities.Len(), e.entries.negatives.Len()
	waiting, refused := e.queue.len(), len(e.cidrs.refused)
	for _, excess := range e.excessive {
		refused += excess.Count
	}
	e.mu.Unlock()
	gauge(entriesDesc, endpoints, string(KindEndpoint))
	gauge(entriesDesc, identities, string(KindIdentity))
	gauge(entriesDesc, absent, string(KindAbsent))
	gauge(waitingDesc, waiting)
	gauge(refusedDesc, refused)
	stats, err := e.kernel.Stats()
	if err != nil {
		return // health has why
	}
	counter := func(desc *prometheus.Desc, n uint64, label string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), label)
	}
	counter(packetsDesc, stats.Hits, "hit")
	counter(packetsDesc, stats.Misses, "miss")
	counter(packetsDesc, stats.Others, "other")
	counter(signalsDesc, stats.Signals, "signalled")
	counter(signalsDesc, stats.Repeated, "repeated")
	counter(signalsDesc, stats.RateLimited, "rate-limited")
	counter(signalsDesc, stats.RingFull, "ring-full")
}
