// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// eventsMetric is etcd's own count of the events that it has sent to watchers: one
// that is sent to two of them counts twice.
const eventsMetric = "etcd_debugging_mvcc_events_total"

// watchEvents asks an etcd for it.
func (e *etcdProcess) watchEvents(ctx context.Context) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("asking %s for its metrics: %w", e.Name(), err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("reading the metrics of %s: %w", e.Name(), err)
	}
	family := families[eventsMetric].GetMetric()
	if len(family) != 1 {
		return 0, fmt.Errorf("the metrics of %s have %d series of %s instead of one", e.Name(), len(family), eventsMetric)
	}
	return int(family[0].GetCounter().GetValue()), nil
}
