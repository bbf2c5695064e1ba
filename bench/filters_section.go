// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"

	"github.com/waggle-mesh/waggle/bench/page"
)

// Section is the report as a part of a page.
func (r *FiltersReport) Section() (page.Section, error) {
	off, on := r.Median()
	figures, err := r.bars(off, on)
	if err != nil {
		return page.Section{}, err
	}
	for _, of := range []struct{ title, own, etcd string }{
		{"KVStoreMesh and the consumer's etcd", partKVStoreMesh, partEtcd},
		{"agent", partAgent, ""},
		{"exporter and its etcd", partExporter, partExporterEtcd},
	} {
		drawn, err := usage([]side{
			{"off", off.samples[of.own], off.samples[of.etcd]},
			{"on", on.samples[of.own], on.samples[of.etcd]},
		})
		if err != nil {
			return page.Section{}, err
		}
		for _, f := range drawn {
			f.Title += ", " + of.title
			figures = append(figures, f)
		}
	}
	return section(fmt.Sprintf("Sync filters: %d clusters, %d endpoints, %s opt in, %s of these regional",
		r.Mesh.Clusters, r.Mesh.Clusters*r.Mesh.Endpoints, share(r.Filters.OptIn), share(r.Filters.Regional)), r, figures)
}

// bars show keys by resource, and watch events by etcd.
func (r *FiltersReport) bars(off, on FilterFigures) ([]page.Figure, error) {
	keys := page.Bars{Y: "keys"}
	for _, kind := range keyKinds {
		stack := page.Stack{Name: kind.name}
		for _, side := range []FilterFigures{off, on} {
			for _, etcd := range filterEtcds {
				stack.Values = append(stack.Values, float64(kind.of(side.Keys[etcd])))
			}
		}
		keys.Stacks = append(keys.Stacks, stack)
	}
	events := page.Bars{Y: "events to watchers"}
	for _, etcd := range filterEtcds {
		events.Stacks = append(events.Stacks, page.Stack{Name: etcd, Values: []float64{
			off.watchEvents(phaseReplace, etcd), on.watchEvents(phaseReplace, etcd),
		}})
	}
	for _, side := range []string{FiltersOff, FiltersOn} {
		for _, etcd := range filterEtcds {
			keys.Labels = append(keys.Labels, side+": "+etcd)
		}
		events.Labels = append(events.Labels, side)
	}
	return draw(
		drawing{"Keys by resource", "In the exporter's etcd, in those of all other sources, and in the consumer's. " +
			"What is left once endpoints are gone are nodes and services, which no filter touches.", keys},
		drawing{"Watch events", "While pods are replaced, of each etcd; every further agent adds as many of the consumer's.", events})
}
