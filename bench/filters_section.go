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
	sides := []string{FiltersOff, FiltersOn}
	keysOf := func(etcds ...string) page.Bars {
		bars := page.Bars{Y: "keys"}
		for _, etcd := range etcds {
			for _, side := range sides {
				bars.Labels = append(bars.Labels, etcd+", "+side)
			}
		}
		for _, kind := range keyKinds {
			stack := page.Stack{Name: kind.name}
			for _, etcd := range etcds {
				stack.Values = append(stack.Values, float64(kind.of(off.Keys[etcd])), float64(kind.of(on.Keys[etcd])))
			}
			bars.Stacks = append(bars.Stacks, stack)
		}
		return bars
	}
	events := page.Bars{Y: "events to watchers", Labels: sides}
	for _, etcd := range filterEtcds {
		events.Stacks = append(events.Stacks, page.Stack{Name: etcd, Values: []float64{
			off.watchEvents(phaseReplace, etcd), on.watchEvents(phaseReplace, etcd),
		}})
	}
	return draw(
		drawing{"Keys by resource", "In the etcds of all sources but the exporter's, and in the consumer's (etcd). " +
			"What is left once endpoints are gone are nodes and services, which no filter touches.", keysOf(filterEtcds[1:]...)},
		drawing{"Keys of one source", "In the exporter's etcd: what isn't pushed is there on demand.", keysOf(filterEtcds[0])},
		drawing{"Watch events", "While pods are replaced, of each etcd; every further agent adds as many of the consumer's.", events})
}
