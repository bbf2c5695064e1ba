// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"

	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/prometheus/client_golang/prometheus"
)

// source is a collector that reads tables and counters when it is asked. The host's
// registry is made early, and much of the host needs it, maybe also what is read here:
// so a source is in the registry from the beginning, and is told what to read once the
// hive is made.
type source struct {
	descs []desc
	read  func(into) // nil until then; set before the hive starts, and thus before Collect
}

// desc is one metric of a source.
type desc struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

// into takes the values of one Collect.
type into chan<- prometheus.Metric

func (ch into) put(d desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d.Desc, d.kind, value, labels...)
}

// Describe implements prometheus.Collector.
func (s *source) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		ch <- d.Desc
	}
}

// Collect implements prometheus.Collector.
func (s *source) Collect(ch chan<- prometheus.Metric) {
	if s.read != nil {
		s.read(ch)
	}
}

// newSource makes a module of a source. Bind is a function of *source and of what the
// source reads, which sets read. The name is what the agent's flag --metrics calls all
// of it; it is unique in a hive.
func newSource(name, title string, descs []desc, bind any) cell.Cell {
	return cell.Module(
		name+"-metrics", title,
		cell.ProvidePrivate(func() *source { return &source{descs: descs} }),
		cell.Provide(func(s *source) out { return provide("waggle_"+strings.ReplaceAll(name, "-", "_"), s) }),
		cell.Invoke(bind),
	)
}

// out is a collector for the hive's registry.
type out struct {
	cell.Out

	Metrics []metric.WithMetadata `group:"hive-metrics,flatten"`
}

// provide gives a collector to the registry, or nothing.
func provide(name string, c prometheus.Collector) out {
	if c == nil {
		return out{}
	}
	return out{Metrics: []metric.WithMetadata{&switched{Collector: c, name: name, enabled: true}}}
}

// switched is a collector as upstream's registries take it: with a name, by which the
// agent's tells its metrics apart and switches them on and off before it starts.
type switched struct {
	prometheus.Collector
	name    string
	enabled bool
}

// IsEnabled says whether it is collected.
func (s *switched) IsEnabled() bool { return s.enabled }

// SetEnabled switches it.
func (s *switched) SetEnabled(enabled bool) { s.enabled = enabled }

// Opts has the name; the rest is of single metrics, which this isn't.
func (s *switched) Opts() metric.Opts { return metric.Opts{ConfigName: s.name} }
