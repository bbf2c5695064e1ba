// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// KeyCounts are the keys of an etcd by resource, canaries and cluster configs not
// counted.
type KeyCounts struct {
	Nodes      int `json:"nodes"`
	Identities int `json:"identities"`
	Endpoints  int `json:"endpoints"`
	Services   int `json:"services"`
	// What other clusters may look up, and none watches, of the exporter's etcd.
	OnDemandEndpoints  int `json:"on_demand_endpoints"`
	OnDemandIdentities int `json:"on_demand_identities"`
}

// Pushed is the number of keys that are watched.
func (k KeyCounts) Pushed() int { return k.Nodes + k.Identities + k.Endpoints + k.Services }

// keyKinds are the kinds of keys, in the order of reports.
var keyKinds = []struct {
	name string
	of   func(KeyCounts) int
}{
	{"nodes", func(k KeyCounts) int { return k.Nodes }},
	{"identities", func(k KeyCounts) int { return k.Identities }},
	{"endpoints", func(k KeyCounts) int { return k.Endpoints }},
	{"services", func(k KeyCounts) int { return k.Services }},
	{"endpoints on demand", func(k KeyCounts) int { return k.OnDemandEndpoints }},
	{"identities on demand", func(k KeyCounts) int { return k.OnDemandIdentities }},
}

// FilterFigures are what one round has measured of one side. Bytes of memory are of
// each phase, as of a mesh's bootstrap: see ScalePhase.
type FilterFigures struct {
	// Keys are those of the exporter's etcd (exporter-etcd), of all other sources
	// (sources), and of the consumer's (etcd), before any change.
	Keys map[string]KeyCounts `json:"keys"`
	// ExporterReadySeconds is the time from the start of the exporter until its etcd
	// was complete, ReadySeconds that of KVStoreMesh, and AgentReadySeconds that of
	// the agent, on a complete etcd, until its map was; AgentReadyCPUSeconds is its
	// CPU time until then.
	ExporterReadySeconds float64 `json:"exporter_ready_seconds"`
	ReadySeconds         float64 `json:"kvstoremesh_ready_seconds"`
	AgentReadySeconds    float64 `json:"agent_ready_seconds"`
	AgentReadyCPUSeconds float64 `json:"agent_ready_cpu_seconds"`
	// MapEntries and MapBytes are of the agent's map when it was complete. Its memory
	// is the kernel's, and in no process's account.
	MapEntries int   `json:"map_entries"`
	MapBytes   int64 `json:"map_bytes"`
	// Changes are the pods that were replaced.
	Changes FilterChanges `json:"changes"`
	// Busy is which part of the machine's processor time was used in the round, 1
	// being all of it.
	Busy float64 `json:"busy"`
	// Phases are export (the exporter fills its etcd), replicate (KVStoreMesh fills the
	// consumer's), agent (an agent takes that in, and a second or more in which it is
	// looked whether it has), idle, and churn.
	Phases []*ScalePhase `json:"phases"`

	samples map[string][]sample
}

func (f *FilterFigures) part(phase, part string) PartFigures {
	figures, _ := partIn(f.Phases, phase, part)
	return figures
}

// watchEvents are those of a phase, of some etcds.
func (f *FilterFigures) watchEvents(phase string, etcds ...string) (sum float64) {
	for _, p := range f.Phases {
		for _, name := range etcds {
			if p.Name == phase {
				sum += float64(p.WatchEvents[name])
			}
		}
	}
	return sum
}

// FiltersRound is one side of one round.
type FiltersRound struct {
	// Side is FiltersOff or FiltersOn.
	Side string `json:"side"`
	FilterFigures
}

// FiltersReport is the outcome of SyncFilters. As JSON, "off" and "on" have the
// figures of the round whose reduction of the agent's bootstrap is the median, and
// "reduction" the medians of 1 − on ÷ off over the rounds, of each figure that has a
// name there; "reductions" has them with their spread.
type FiltersReport struct {
	Head
	Filters Filters
	// Rate is the number of pods replaced per second, for so many Seconds.
	Rate, Seconds float64
	Rounds        []FiltersRound
}

// of are the figures of one side, in the order of the rounds.
func (r *FiltersReport) of(side string) (all []FilterFigures) {
	for _, round := range r.Rounds {
		if round.Side == side {
			all = append(all, round.FilterFigures)
		}
	}
	return all
}

// reductions are a line's, by round; none of a round without the figure.
func (r *FiltersReport) reductions(l line[FilterFigures]) (all []float64) {
	on := r.of(FiltersOn)
	for i, off := range r.of(FiltersOff) {
		if without := l.of(off); i < len(on) && without > 0 {
			all = append(all, 1-l.of(on[i])/without)
		}
	}
	return all
}

// Reductions say what filters spare, by figure: 1 is all of it, 0 is nothing, and
// what they cost is below.
func (r *FiltersReport) Reductions() map[string]Spread {
	out := map[string]Spread{}
	for _, l := range filterLines {
		if all := r.reductions(l); l.ratio != "" && len(all) > 0 {
			out[l.ratio] = spreadOf(all)
		}
	}
	return out
}

// Median are both sides of one round: the one in which filters have spared the
// agent's bootstrap as much as in the median.
func (r *FiltersReport) Median() (off, on FilterFigures) {
	type pair struct{ off, on FilterFigures }
	var all []pair
	ons := r.of(FiltersOn)
	for i, off := range r.of(FiltersOff) {
		all = append(all, pair{off, ons[i]})
	}
	slices.SortStableFunc(all, func(a, b pair) int {
		return cmp.Compare(b.on.AgentReadySeconds/b.off.AgentReadySeconds, a.on.AgentReadySeconds/a.off.AgentReadySeconds)
	})
	middle := all[len(all)/2]
	return middle.off, middle.on
}

// MarshalJSON gives the report with a field for each side.
func (r *FiltersReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["parameters"] = struct {
		Mesh
		Filters
	}{r.Mesh, r.Filters}
	out["rate"], out["seconds"], out["rounds"] = r.Rate, r.Seconds, r.Rounds
	out[FiltersOff], out[FiltersOn] = r.Median()
	medians, reductions := map[string]float64{}, r.Reductions()
	for name, spread := range reductions {
		medians[name] = spread.Median
	}
	out["reduction"], out["reductions"] = medians, reductions
	return json.Marshal(out)
}

// filterLines are the figures of FiltersReport; the ratio of each is the name of its
// reduction.
var filterLines = func() (all []line[FilterFigures]) {
	add := func(title string, of func(FilterFigures) float64, format func(float64) string, reduction string) {
		all = append(all, figure(title, of, format, reduction))
	}
	keys := func(etcd string, of func(KeyCounts) int) func(FilterFigures) float64 {
		return func(f FilterFigures) float64 { return float64(of(f.Keys[etcd])) }
	}
	cpu := func(phase, part string) func(FilterFigures) float64 {
		return func(f FilterFigures) float64 { return f.part(phase, part).CPUSeconds }
	}
	peak := func(phase, part string) func(FilterFigures) float64 {
		return func(f FilterFigures) float64 { return float64(f.part(phase, part).PeakRSSBytes) }
	}
	rest := func(part string) func(FilterFigures) float64 {
		return func(f FilterFigures) float64 { return float64(f.part(phaseIdle, part).EndRSSBytes) }
	}
	add("keys in the consumer's etcd", keys(partEtcd, KeyCounts.Pushed), count, "keys")
	add("endpoints of them", keys(partEtcd, func(k KeyCounts) int { return k.Endpoints }), count, "endpoint_keys")
	add("keys in the sources' etcds but the exporter's", keys(filterEtcds[1], KeyCounts.Pushed), count, "source_keys")
	add("watch events while pods are replaced", func(f FilterFigures) float64 { return f.watchEvents(phaseReplace, filterEtcds...) }, count, "watch_events")
	add("of the consumer's etcd, to its one agent", func(f FilterFigures) float64 { return f.watchEvents(phaseReplace, partEtcd) }, count, "consumer_watch_events")
	add("agent: map ready", func(f FilterFigures) float64 { return f.AgentReadySeconds }, seconds, "agent_bootstrap_seconds")
	add("CPU until then", func(f FilterFigures) float64 { return f.AgentReadyCPUSeconds }, seconds, "agent_cpu")
	add("peak RSS of its bootstrap", peak(phaseAgent, partAgent), mebibytes, "agent_rss")
	add("RSS when nothing changes", rest(partAgent), mebibytes, "agent_steady_rss")
	add("of it anonymous", func(f FilterFigures) float64 { return float64(f.part(phaseIdle, partAgent).EndAnonBytes) }, mebibytes, "agent_anon")
	add("its map, the kernel's memory", func(f FilterFigures) float64 { return float64(f.MapBytes) }, mebibytes, "map_bytes")
	add("entries of the map", func(f FilterFigures) float64 { return float64(f.MapEntries) }, count, "map_entries")
	add("CPU while pods are replaced", cpu(phaseReplace, partAgent), seconds, "agent_churn_cpu")
	add("KVStoreMesh: ready", func(f FilterFigures) float64 { return f.ReadySeconds }, seconds, "kvstoremesh_bootstrap_seconds")
	add("CPU until then", cpu(phaseReplicate, partKVStoreMesh), seconds, "kvstoremesh_cpu")
	add("peak RSS of its bootstrap", peak(phaseReplicate, partKVStoreMesh), mebibytes, "kvstoremesh_rss")
	add("RSS when nothing changes", rest(partKVStoreMesh), mebibytes, "kvstoremesh_steady_rss")
	add("CPU while pods are replaced", cpu(phaseReplace, partKVStoreMesh), seconds, "kvstoremesh_churn_cpu")
	add("consumer's etcd: CPU while it is filled", cpu(phaseReplicate, partEtcd), seconds, "etcd_cpu")
	add("peak RSS until an agent has it all", func(f FilterFigures) float64 {
		return max(peak(phaseReplicate, partEtcd)(f), peak(phaseAgent, partEtcd)(f))
	}, mebibytes, "etcd_rss")
	add("RSS when nothing changes", rest(partEtcd), mebibytes, "etcd_steady_rss")
	add("CPU while pods are replaced", cpu(phaseReplace, partEtcd), seconds, "etcd_churn_cpu")
	add("exporter: ready", func(f FilterFigures) float64 { return f.ExporterReadySeconds }, seconds, "exporter_bootstrap_seconds")
	add("CPU until then", cpu(phaseExport, partExporter), seconds, "exporter_cpu")
	add("peak RSS of its bootstrap", peak(phaseExport, partExporter), mebibytes, "exporter_rss")
	add("RSS when nothing changes", rest(partExporter), mebibytes, "exporter_steady_rss")
	add("CPU while pods are replaced", cpu(phaseReplace, partExporter), seconds, "exporter_churn_cpu")
	add("exporter's etcd: RSS when nothing changes", rest(partExporterEtcd), mebibytes, "exporter_etcd_steady_rss")
	add("machine busy", func(f FilterFigures) float64 { return f.Busy }, share, "")
	return all
}()

// share is a part of 1, in share.
func share(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

// WriteText writes the report for a reader.
func (r *FiltersReport) WriteText(w io.Writer) error {
	r.writeText(w)
	f := r.Filters
	fmt.Fprintf(w, "filters: %s of workloads opt in, %s of these are regional, %d regions; %d rounds\n",
		share(f.OptIn), share(f.Regional), f.Regions, len(r.of(FiltersOn)))
	fmt.Fprintf(w, "off: %s; on: %s\n", r.Allowed[FiltersOff], r.Allowed[FiltersOn])
	off, on := r.Median()
	fmt.Fprintf(w, "replaced: %d and %d pods at %g/s, of which %d and %d are pushed\n", off.Changes.Sent, on.Changes.Sent, r.Rate, off.Changes.Pushed, on.Changes.Pushed)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "\nkeys\toff\ton\tspared\t\n")
	for _, etcd := range filterEtcds {
		for _, kind := range keyKinds {
			if without, with := kind.of(off.Keys[etcd]), kind.of(on.Keys[etcd]); without > 0 || with > 0 {
				fmt.Fprintf(table, "%s: %s\t%d\t%d\t%s\t\n", etcd, kind.name, without, with, spared(float64(without), float64(with)))
			}
		}
	}
	fmt.Fprint(table, "\nwatch events\toff\ton\tspared\t\n")
	for _, phase := range off.Phases {
		for _, etcd := range filterEtcds {
			if _, there := phase.WatchEvents[etcd]; there {
				without, with := off.watchEvents(phase.Name, etcd), on.watchEvents(phase.Name, etcd)
				fmt.Fprintf(table, "%s: %s\t%.0f\t%.0f\t%s\t\n", phase.Name, etcd, without, with, spared(without, with))
			}
		}
	}
	fmt.Fprint(table, "\nmedians\toff\ton\tspared: median\tmin\tmax\t\n")
	for _, l := range filterLines {
		all := spreadOf(r.reductions(l))
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t\n", l.title,
			l.format(spreadOf(l.values(r.of(FiltersOff))).Median), l.format(spreadOf(l.values(r.of(FiltersOn))).Median),
			share(all.Median), share(all.Min), share(all.Max))
	}
	return table.Flush()
}

// spared is what a reduction is of two numbers.
func spared(off, on float64) string {
	if off == 0 {
		return ""
	}
	return share(1 - on/off)
}
