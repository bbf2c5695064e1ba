// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var docs = filepath.Join("..", "..", "..", "docs")

// TestDocs compares docs/metrics.md with what the hives have.
func TestDocs(t *testing.T) {
	want, err := Markdown()
	require.NoError(t, err)
	have, err := os.ReadFile(filepath.Join(docs, "metrics.md"))
	require.NoError(t, err)
	require.Equal(t, want, string(have), "make docs writes it anew")
}

// TestDashboard compares the metrics that the dashboard's expressions name, and the
// labels that they group by or select, with what there is.
func TestDashboard(t *testing.T) {
	all, err := All()
	require.NoError(t, err)
	metrics := make(map[string]*Metric)
	labels := map[string]bool{"job": true, "instance": true, "pod": true, "le": true}
	for i := range all {
		metrics[all[i].Name] = &all[i]
		for _, label := range all[i].Labels {
			labels[label] = true
		}
	}
	data, err := os.ReadFile(filepath.Join(docs, "grafana", "waggle.json"))
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &dashboard))
	rows, used := 0, 0
	for _, panel := range dashboard.Panels {
		if panel.Type == "row" {
			rows++
			continue
		}
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			names, grouped := parse(target.Expr)
			require.NotEmpty(t, names, target.Expr)
			for _, name := range names {
				used++
				m := metrics[name]
				if base, ok := strings.CutSuffix(name, "_bucket"); ok && m == nil {
					m = metrics[base]
					require.NotNil(t, m, "%s in %s", name, panel.Title)
					require.Equal(t, "histogram", m.Type, name)
				}
				require.NotNil(t, m, "%s in %s", name, panel.Title)
				if m.Type == "counter" {
					require.Contains(t, target.Expr, "rate("+name, panel.Title)
				}
			}
			for _, label := range grouped {
				require.True(t, labels[label], "label %s in %s", label, panel.Title)
			}
		}
	}
	require.Equal(t, 7, rows)
	require.Greater(t, used, 20)
}

var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	grouping = regexp.MustCompile(`\b(?:by|without|on|ignoring) ?\(([^)]*)\)`)
	matching = regexp.MustCompile(`\{([^}]*)\}`)
	word     = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
)

// parse finds the names of metrics and the labels in an expression: names are words that
// have an underscore and are no function, and the dashboard uses few of those. A parser of
// the language would bring in all of Prometheus.
func parse(expr string) (names, labels []string) {
	expr = quoted.ReplaceAllString(expr, "")
	take := func(m string) string {
		labels = append(labels, word.FindAllString(m[strings.IndexAny(m, "({"):], -1)...)
		return ""
	}
	expr = grouping.ReplaceAllStringFunc(expr, take)
	expr = matching.ReplaceAllStringFunc(expr, take)
	for _, name := range word.FindAllString(expr, -1) {
		if strings.Contains(name, "_") && name != "histogram_quantile" && !strings.HasPrefix(name, "_") {
			names = append(names, name)
		}
	}
	return names, labels
}

func TestParse(t *testing.T) {
	names, labels := parse(`sum by (job, le) (rate(a_total{x=~"b_c"}[5m])) / time() - histogram_quantile(0.99, d_bucket)`)
	require.Equal(t, []string{"a_total", "d_bucket"}, names)
	require.Equal(t, []string{"job", "le", "x"}, labels)
}
