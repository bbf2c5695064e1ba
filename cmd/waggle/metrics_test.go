// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_kubernetes

package main

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/metrics/catalog"
)

// notAtOnce are metrics that a program has once there was something to tell, and what.
var notAtOnce = map[string]string{
	"waggle_remote_cluster_refused_total":         "a remote cluster's value was refused",
	"waggle_datastore_refused":                    "a value of the cluster's own was",
	"waggle_datastore_restored_entries":           "the start found a snapshot",
	"waggle_datastore_started":                    "likewise",
	"waggle_datastore_snapshot_bytes":             "a snapshot was written",
	"waggle_datastore_snapshot_timestamp_seconds": "likewise",
}

// TestMetricsAreListed has each program serve, of what begins with our prefix, what
// docs/metrics.md lists of it and nothing else.
func TestMetricsAreListed(t *testing.T) {
	all, err := catalog.All()
	require.NoError(t, err)
	listed := make(map[string][]string)
	for _, m := range all {
		if m.Upstream() {
			continue
		}
		for _, program := range m.Programs {
			listed[program] = append(listed[program], m.Name)
		}
	}
	started := startAll(t)
	for _, p := range programs {
		var served []string
		require.EventuallyWithT(t, func(collect *assert.CollectT) {
			served = nil
			for _, s := range started { // an agent has some with on-demand resolution alone
				if s.name == p.name {
					served = append(served, ours(collect, s.metrics)...)
				}
			}
			assert.Empty(collect, slices.DeleteFunc(slices.Clone(listed[p.name]), func(name string) bool {
				return notAtOnce[name] != "" || slices.Contains(served, name)
			}), "%s has no such metrics", p.name)
		}, 2*time.Minute, 100*time.Millisecond)
		require.Empty(t, slices.DeleteFunc(served, func(name string) bool { return slices.Contains(listed[p.name], name) }),
			"docs/metrics.md doesn't list them for %s", p.name)
	}
}

// ours are the names of the metrics with our prefix that are served at an address.
func ours(t require.TestingT, address string) (names []string) {
	resp, err := http.Get("http://" + address + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	require.NoError(t, err)
	for name := range families {
		if strings.HasPrefix(name, "waggle_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
