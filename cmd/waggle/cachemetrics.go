// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/export"
)

// cacheMetrics are what an in-cluster cache says at --prometheus-serve-addr.
var cacheMetrics = cell.Provide(func(bound *etcd.ListBound, writer *etcd.Writer, exporter *export.Exporter) metricsOut {
	return collectorOut(&cacheCollector{bound, writer, exporter})
})

// metricsOut is a collector for the hive's registry.
type metricsOut struct {
	cell.Out

	Metrics []metric.WithMetadata `group:"hive-metrics,flatten"`
}

func collectorOut(c prometheus.Collector) metricsOut {
	return metricsOut{Metrics: []metric.WithMetadata{alwaysOn{c}}}
}

// alwaysOn is a collector as upstream's registry takes it.
type alwaysOn struct{ prometheus.Collector }

// IsEnabled says yes.
func (alwaysOn) IsEnabled() bool { return true }

// SetEnabled does nothing.
func (alwaysOn) SetEnabled(bool) {}

// Opts are of a single metric, which this isn't.
func (alwaysOn) Opts() metric.Opts { return metric.Opts{} }

// cacheCollector asks the parts of a cache when it is asked itself.
type cacheCollector struct {
	bound    *etcd.ListBound
	writer   *etcd.Writer
	exporter *export.Exporter
}

func cacheDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("waggle_incluster_cache_"+name, help, labels, nil)
}

var (
	cacheLists     = cacheDesc("lists", "Lists that the embedded etcd serves now")
	cacheEnded     = cacheDesc("lists_total", "Lists that it has served")
	cachePostponed = cacheDesc("lists_postponed_total", "Answers that put a list off, since as many were served as may be at once")
	cacheAbandoned = cacheDesc("lists_abandoned_total", "Lists that lost their place, since nobody asked for their next page")
	cacheDuration  = cacheDesc("list_duration_seconds", "How long a list takes, smoothed")
	cacheKeys      = cacheDesc("keys", "Keys in etcd", "resource")
	cacheCommits   = cacheDesc("commits_total", "Transactions made in etcd; each is a message to each agent")
	cacheChanges   = cacheDesc("changes_total", "Changes of keys that they held")
	cachePending   = cacheDesc("pending_changes", "Changes that are not in etcd yet")
	cacheFailures  = cacheDesc("commit_failures_total", "Transactions that failed and were tried again")
)

// Describe implements prometheus.Collector.
func (c *cacheCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{cacheLists, cacheEnded, cachePostponed, cacheAbandoned, cacheDuration,
		cacheKeys, cacheCommits, cacheChanges, cachePending, cacheFailures} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *cacheCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	counter := func(desc *prometheus.Desc, value uint64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value))
	}
	lists, writes := c.bound.Stats(), c.writer.Stats()
	gauge(cacheLists, float64(lists.Open))
	counter(cacheEnded, lists.Ended)
	counter(cachePostponed, lists.Postponed)
	counter(cacheAbandoned, lists.Abandoned)
	gauge(cacheDuration, lists.Duration.Seconds())
	for resource, count := range c.exporter.Counts() {
		gauge(cacheKeys, float64(count), string(resource))
	}
	counter(cacheCommits, writes.Commits)
	counter(cacheChanges, writes.Operations)
	gauge(cachePending, float64(writes.Pending))
	counter(cacheFailures, writes.Failures)
}
