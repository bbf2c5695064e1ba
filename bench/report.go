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
	"time"
)

// Subjects are the names of the measured programs, in the order of their first
// rounds.
func (r *Report) Subjects() []string {
	var names []string
	for _, round := range r.Rounds {
		if !slices.Contains(names, round.Subject) {
			names = append(names, round.Subject)
		}
	}
	return names
}

// of are the figures of one subject, fastest round first.
func (r *Report) of(subject string) []Figures {
	var all []Figures
	for _, round := range r.Rounds {
		if round.Subject == subject {
			all = append(all, round.Figures)
		}
	}
	slices.SortStableFunc(all, func(a, b Figures) int { return cmp.Compare(a.ReadySeconds, b.ReadySeconds) })
	return all
}

// Median is the round of the subject whose time until ready is the median (of
// an even number, the slower one): its figures belong together, which medians of
// each figure would not. The subject must have a round.
func (r *Report) Median(subject string) Figures {
	all := r.of(subject)
	return all[len(all)/2]
}

// MarshalJSON gives the report with each subject's Median as a field of the
// subject's name.
func (r *Report) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rounds"] = r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	if peers := r.peers(); len(peers) > 0 {
		ratios := map[string]map[string]Spread{}
		for _, peer := range peers {
			ratios[peer] = r.Ratios(peer)
		}
		medians := map[string]float64{}
		for name, spread := range ratios[peers[0]] {
			medians[name] = spread.Median
		}
		out["ratio"], out["ratios"] = medians, ratios
	}
	return json.Marshal(out)
}

// WriteText writes the report for a reader: one line for each figure, with its
// smallest, median and largest value over the rounds.
func (r *Report) WriteText(w io.Writer) error {
	r.writeText(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, name := range r.Subjects() {
		all := r.of(name)
		fmt.Fprintf(table, "\n%s: %s\n%d rounds\tmin\tmedian\tmax\t\n", name, r.Allowed[name], len(all))
		for _, line := range []struct {
			name   string
			of     func(Figures) float64
			format func(float64) string
		}{
			{"ready", func(f Figures) float64 { return f.ReadySeconds }, seconds},
			{"CPU until ready", func(f Figures) float64 { return f.CPUSeconds }, seconds},
			{"CPU of the local etcd", func(f Figures) float64 { return f.EtcdCPUSeconds }, seconds},
			{"CPU of the source etcds", func(f Figures) float64 { return f.SourceCPUSeconds }, seconds},
			{"CPU over its lifetime", func(f Figures) float64 { return f.LifetimeCPUSeconds }, seconds},
			{"peak RSS", func(f Figures) float64 { return float64(f.PeakRSSBytes) }, mebibytes},
			{"anonymous, when ready", func(f Figures) float64 { return float64(f.AnonRSSBytes) }, mebibytes},
			{"of its program file", func(f Figures) float64 { return float64(f.FileRSSBytes) }, mebibytes},
			{"peak RSS of the local etcd", func(f Figures) float64 { return float64(f.EtcdPeakRSSBytes) }, mebibytes},
		} {
			var values []float64
			for _, f := range all {
				values = append(values, line.of(f))
			}
			slices.Sort(values)
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t\n", line.name, line.format(values[0]),
				line.format(values[len(values)/2]), line.format(values[len(values)-1]))
		}
	}
	for _, peer := range r.peers() {
		fmt.Fprintf(table, "\n%s ÷ %s\tmin\tmedian\tmax\t\n", peer, Waggle)
		ratios := r.Ratios(peer)
		for _, ratio := range ratioOf {
			s := ratios[ratio.name]
			fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%.2f\t\n", ratio.title, s.Min, s.Median, s.Max)
		}
	}
	return table.Flush()
}

// fields are those of a report as JSON.
func (h *Head) fields() map[string]any {
	return map[string]any{
		"benchmark":  h.Benchmark,
		"began":      h.Began.Format(time.RFC3339),
		"parameters": h.Mesh,
		"machine":    h.Machine,
		"build":      h.Build,
		"sources":    h.Sources,
		"allowed":    h.Allowed,
	}
}

// writeText writes the lines that a report begins with. Errors are found by
// whatever writes the rest.
func (h *Head) writeText(w io.Writer) {
	m := h.Mesh
	fmt.Fprintf(w, "%s: %d clusters of %d endpoints, %d nodes, %d identities, %d services: %d keys, seed %d\n",
		h.Benchmark, m.Clusters, m.Endpoints, m.Nodes, m.Identities, m.Services, m.Keys(), m.Seed)
	fmt.Fprintf(w, "sources: %d etcds, layout %s, %s of values\n", h.Sources.Etcds, h.Sources.Layout, mebibytes(float64(h.Sources.ValueBytes)))
	fmt.Fprintf(w, "machine: %d × %s, %s of memory, load %.1f, Linux %s, %s\n", h.Machine.Cores, h.Machine.Model,
		mebibytes(float64(h.Machine.MemoryBytes)), h.Machine.Load, h.Machine.Kernel, h.Machine.Go)
	if h.Build.Commit != "" {
		fmt.Fprintf(w, "commit: %s (modified: %t)\n", h.Build.Commit, h.Build.Modified)
	}
}

func seconds(v float64) string   { return fmt.Sprintf("%.3f s", v) }
func mebibytes(v float64) string { return fmt.Sprintf("%.1f MiB", v/(1<<20)) }
