// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/prometheus/client_golang/prometheus"
)

// Description is what a metric says of itself.
type Description struct {
	// Type is "gauge", "counter" or "histogram".
	Name, Type, Help string
	Labels           []string
}

// descFormat is how client_golang prints a prometheus.Desc, which tells it in no other
// way.
var descFormat = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: ("(?:[^"\\]|\\.)*"), constLabels: \{.*\}, variableLabels: \{(.*)\}\}$`)

// Describe gives the descriptions of a collector of the group "hive-metrics".
func Describe(m metric.WithMetadata) ([]Description, error) {
	c, ok := m.(prometheus.Collector)
	if !ok {
		return nil, fmt.Errorf("%T is no collector", m)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	var (
		all []Description
		err error
	)
	for desc := range descs {
		match := descFormat.FindStringSubmatch(desc.String())
		if match == nil {
			err = fmt.Errorf("reading %q", desc)
			continue // who describes waits for us
		}
		help, _ := strconv.Unquote(match[2]) // the format has it quoted
		d := Description{Name: match[1], Help: help, Type: typeOf(m, match[1])}
		if match[3] != "" {
			d.Labels = strings.Split(match[3], ",")
		}
		all = append(all, d)
	}
	return all, err
}

// typeOf is the type of one metric of a collector. Where the collector doesn't tell it
// is known by the name, which follows Prometheus's rules.
func typeOf(m metric.WithMetadata, name string) string {
	switch m := m.(type) {
	case metric.Gauge, metric.Vec[metric.Gauge]:
		return "gauge"
	case metric.Counter, metric.Vec[metric.Counter]:
		return "counter"
	case metric.Histogram, metric.Vec[metric.Observer]:
		return "histogram"
	case *switched:
		if s, ok := m.Collector.(*source); ok {
			return s.typeOf(name)
		}
	}
	switch {
	case strings.HasSuffix(name, "_total"):
		return "counter"
	case strings.HasSuffix(name, "_duration_seconds"):
		return "histogram"
	}
	return "gauge"
}

func (s *source) typeOf(name string) string {
	for _, d := range s.descs {
		if d.kind == prometheus.CounterValue && strings.Contains(d.String(), strconv.Quote(name)) {
			return "counter"
		}
	}
	return "gauge"
}
