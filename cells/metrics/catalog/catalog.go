// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package catalog lists the metrics of all programs, as their hives have them:
// docs/metrics.md is made of it, and the dashboard is checked against it.
package catalog

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/cilium/pkg/metrics/metric"
	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells"
	ours "github.com/waggle-mesh/waggle/cells/metrics"
)

// Metric is one metric, and which programs have it.
type Metric struct {
	ours.Description
	Programs []string
}

// Upstream says whether the name is Cilium's own.
func (m *Metric) Upstream() bool { return !strings.HasPrefix(m.Name, "waggle_") }

// programs are the hives that metrics are listed of, and the namespaces of upstream's
// metrics there.
var programs = []struct {
	name, namespace string
	cells           cell.Cell
}{
	{"clustermesh", metrics.CiliumClusterMeshAPIServerNamespace, cell.Group(cells.Exporter, ours.Exporter)},
	{"kvstoremesh", metrics.CiliumKVStoreMeshNamespace, cell.Group(cells.KVStoreMesh, ours.KVStoreMesh)},
	{"agent", metrics.CiliumAgentNamespace, cell.Group(cells.Agent, ours.Agent)},
	{"incluster-cache", metrics.CiliumAgentNamespace, cell.Group(cells.InClusterCache, ours.InClusterCache)},
}

// All makes the hives, starts none, and gives their metrics by name, ours first. It sets
// the namespace of upstream's metrics, which is global, and is for one goroutine.
func All() ([]Metric, error) {
	namespace := metrics.Namespace
	defer func() { metrics.Namespace = namespace }()
	byName := make(map[string]*Metric)
	for _, p := range programs {
		metrics.Namespace = p.namespace
		var found []metric.WithMetadata
		h := hive.New(p.cells, ours.KVStore, cell.Invoke(func(in struct {
			cell.In
			Metrics []metric.WithMetadata `group:"hive-metrics"`
		}) {
			found = in.Metrics
		}))
		if err := h.Populate(slog.New(slog.DiscardHandler)); err != nil {
			return nil, fmt.Errorf("making the hive of %s: %w", p.name, err)
		}
		// Of the host's own ones, which aren't in the group, this is fed by us.
		found = append(found, metrics.NewLegacyMetrics().KVStoreOperationsDuration)
		for _, m := range found {
			descriptions, err := ours.Describe(m)
			if err != nil {
				return nil, fmt.Errorf("describing the metrics of %s: %w", p.name, err)
			}
			for _, d := range descriptions {
				if byName[d.Name] == nil {
					byName[d.Name] = &Metric{Description: d}
				}
				byName[d.Name].Programs = append(byName[d.Name].Programs, p.name)
			}
		}
	}
	var all []Metric
	for _, m := range byName {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b Metric) int {
		return cmp.Or(-cmp.Compare(a.Name[:1], b.Name[:1]), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// Markdown is docs/metrics.md.
func Markdown() (string, error) {
	all, err := All()
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString(`# Metrics

This page is made of the code (` + "`make docs`" + `): it lists what the hives of the programs register. Each program serves its metrics at ` + "`--prometheus-serve-addr`" + `;
where the cells are compiled into Cilium's own programs they are in the registry of those, without the lines that the host has itself.

Metrics that begin with ` + "`waggle_`" + ` are ours. The others have the name and the meaning that Cilium gives them, with the prefix that Cilium has in that program:
` + "`cilium_clustermesh_apiserver_`, `cilium_kvstoremesh_` or `cilium_`" + `. An observation of ` + "`…kvstore_operations_duration_seconds`" + ` is a commit, once for each resource that it writes, and not a key.

A [dashboard for Grafana](grafana/waggle.json) has the most of them.

`)
	for _, part := range []struct {
		title    string
		upstream bool
	}{{"Waggle's", false}, {"Cilium's", true}} {
		fmt.Fprintf(&out, "## %s\n| metric | type | labels | programs | meaning |\n|---|---|---|---|---|\n", part.title)
		for i := range all {
			m := &all[i]
			if m.Upstream() != part.upstream {
				continue
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "),
				strings.Join(m.Programs, ", "), strings.ReplaceAll(m.Help, "|", "\\|"))
		}
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}
