// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// ErrNoMetric says that the server exposes no metric of that name, or none with
// these label names. Zero would hide a misspelt assertion.
var ErrNoMetric = errors.New("no such metric")

// Metric reads the server's /metrics and returns the sum over the series of one
// metric that carry all the given labels: of values for a counter or gauge, of
// numbers of observations for a histogram or summary. It is 0 when other values
// of these labels exist and the given ones don't, and ErrNoMetric when the
// metric doesn't exist or no series of it has these label names. A metric with
// labels exists from its first observation on.
func (s *Server) Metric(ctx context.Context, name string, labels map[string]string) (float64, error) {
	text, err := s.Kubernetes.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	return sumSeries(bytes.NewReader(text), name, labels)
}

// sumSeries is Metric on a text in Prometheus' exposition format.
func sumSeries(text io.Reader, name string, labels map[string]string) (float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return 0, fmt.Errorf("parsing metrics: %w", err)
	}
	var sum float64
	var known bool
	for _, series := range families[name].GetMetric() {
		has, equal := compareLabels(series, labels)
		known = known || has
		if equal {
			sum += value(series)
		}
	}
	if !known {
		return 0, fmt.Errorf("%w: %s with labels %v", ErrNoMetric, name, labels)
	}
	return sum, nil
}

// compareLabels tells whether a series has all these label names, and whether
// it has them with these values.
func compareLabels(series *dto.Metric, labels map[string]string) (has, equal bool) {
	var names, values int
	for _, pair := range series.GetLabel() {
		if want, ok := labels[pair.GetName()]; ok {
			names++
			if want == pair.GetValue() {
				values++
			}
		}
	}
	return names == len(labels), values == len(labels)
}

// value is the one number that stands for a series. The getters return zero for
// the kinds that the series isn't.
func value(series *dto.Metric) float64 {
	return series.GetCounter().GetValue() +
		series.GetGauge().GetValue() +
		series.GetUntyped().GetValue() +
		float64(series.GetHistogram().GetSampleCount()) +
		float64(series.GetSummary().GetSampleCount())
}
