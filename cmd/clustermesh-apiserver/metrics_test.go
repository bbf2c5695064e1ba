// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// registered are the metrics that upstream's metrics.Cell registers by itself, and not
// because they are in the hive.
var registered = []string{
	"version", "kvstore_operations_duration_seconds", "kvstore_events_queue_seconds", "kvstore_quorum_errors_total",
	"api_limiter_processing_duration_seconds", "api_limiter_wait_duration_seconds", "api_limiter_requests_in_flight",
	"api_limiter_rate_limit", "api_limiter_processed_requests_total",
}

// checkFed compares which of the metrics that upstream's cell registers have values with
// the reviewed list of those that never have.
func checkFed(t *testing.T, c corev1.Container, namespace string) {
	t.Helper()
	list, err := os.ReadFile("../../cells/host/apiserver/testdata/differences.txt")
	require.NoError(t, err)
	neverFed := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^0metric (\w+): `).FindAllStringSubmatch(string(list), -1) {
		require.Contains(t, registered, match[1], "differences.txt")
		neverFed[match[1]] = true
	}
	address := fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsPort(t, c))
	var text string
	fed := func(name string) bool { return strings.Contains(text, "# TYPE "+namespace+"_"+name+" ") }
	require.EventuallyWithT(t, func(col *assert.CollectT) {
		text = scrape(t, address)
		for _, name := range registered {
			require.True(col, fed(name) || neverFed[name], "%s has no values, and isn't in differences.txt", name)
		}
	}, patience, 50*time.Millisecond)
	for _, name := range registered {
		require.False(t, fed(name) && neverFed[name], "%s has values, in spite of differences.txt", name)
	}
}

// metricsPort is where a container has its metrics.
func metricsPort(t *testing.T, c corev1.Container) int32 {
	t.Helper()
	for _, port := range c.Ports {
		if strings.HasSuffix(port.Name, "metrics") {
			return port.ContainerPort
		}
	}
	t.Fatalf("the container %q has no metrics", c.Name)
	return 0
}

// scrape is what an address answers with; nothing if it doesn't.
func scrape(t *testing.T, address string) string {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}
