// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// registeredByUpstream are the names, without the namespace, of the metrics that upstream's
// metrics.Cell registers by itself, and not because they are in the hive. It asks nobody
// for them, so that they are read out of its source.
func registeredByUpstream(t *testing.T) (names []string) {
	t.Helper()
	source := filepath.Join(os.Getenv(upstreamEnv), "clustermesh-apiserver", "metrics", "metrics.go")
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	all := reflect.ValueOf(metrics.NewLegacyMetrics()).Elem()
	name := regexp.MustCompile(`fqName: "` + metrics.Namespace + `_(\w+)"`)
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		if method, ok := call.Fun.(*ast.SelectorExpr); !ok || method.Sel.Name != "MustRegister" {
			return true
		}
		for _, arg := range call.Args {
			variable, ok := arg.(*ast.SelectorExpr)
			if !ok {
				continue // collectors of the process, and what the hive has
			}
			field := all.FieldByName(variable.Sel.Name)
			require.True(t, field.IsValid(), "of %s the name isn't known", variable.Sel.Name)
			descriptions := make(chan *prometheus.Desc, 1)
			field.Interface().(prometheus.Collector).Describe(descriptions)
			match := name.FindStringSubmatch((<-descriptions).String())
			require.NotNil(t, match, variable.Sel.Name)
			names = append(names, match[1])
		}
		return true
	})
	require.NotEmpty(t, names, source)
	return names
}

// checkFed compares which of the metrics that upstream's cell registers have values with
// the reviewed list of those that never have.
func checkFed(t *testing.T, c corev1.Container, namespace string) {
	t.Helper()
	registered := registeredByUpstream(t)
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
