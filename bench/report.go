// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Subjects are the names of the measured programs, in the order of their first
// rounds.
func (r *Report) Subjects() []string {
	return distinct(r.Rounds, func(round Round) string { return round.Subject })
}

// of are the figures of one subject, fastest round first.
func (r *Report) of(subject string) []Figures {
	all := r.inOrder(subject)
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

// inOrder are the figures of one subject, in the order of the rounds.
func (r *Report) inOrder(subject string) (all []Figures) {
	for _, round := range r.Rounds {
		if round.Subject == subject {
			all = append(all, round.Figures)
		}
	}
	return all
}

func (r *Report) rounds() rounds[Figures] {
	return rounds[Figures]{head: &r.Head, subjects: r.Subjects(), of: r.inOrder, lines: reportLines}
}

// Ratios are the peer's figures divided by ours, of each round, by name.
func (r *Report) Ratios(peer string) map[string]Spread { return r.rounds().ratios(peer) }

// MarshalJSON gives the report with each subject's Median as a field of the
// subject's name.
func (r *Report) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rounds"] = r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	r.rounds().addRatios(out)
	return json.Marshal(out)
}

// WriteText writes the report for a reader: one line for each figure, with its
// smallest, median and largest value over the rounds.
func (r *Report) WriteText(w io.Writer) error {
	r.writeText(w)
	return r.rounds().write(w)
}

// reportLines are the figures of Report.
var reportLines = append([]line[Figures]{
	figure("ready", func(f Figures) float64 { return f.ReadySeconds }, seconds, "ready"),
	figure("CPU until ready", func(f Figures) float64 { return f.CPUSeconds }, seconds, "cpu"),
	figure("CPU of the local etcd", func(f Figures) float64 { return f.EtcdCPUSeconds }, seconds, "etcd_cpu"),
	figure("CPU of the source etcds", func(f Figures) float64 { return f.SourceCPUSeconds }, seconds, "source_cpu"),
	figure("CPU over its lifetime", func(f Figures) float64 { return f.LifetimeCPUSeconds }, seconds, ""),
	figure("peak RSS", func(f Figures) float64 { return float64(f.PeakRSSBytes) }, mebibytes, "rss"),
	figure("anonymous, when ready", func(f Figures) float64 { return float64(f.AnonRSSBytes) }, mebibytes, "anon"),
	figure("of its program file", func(f Figures) float64 { return float64(f.FileRSSBytes) }, mebibytes, ""),
	figure("peak RSS of the local etcd", func(f Figures) float64 { return float64(f.EtcdPeakRSSBytes) }, mebibytes, ""),
}, scenarioLines...)

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
	h.writeMachine(w)
}

// writeMachine writes what it was measured on.
func (h *Head) writeMachine(w io.Writer) {
	fmt.Fprintf(w, "machine: %d × %s, %s of memory, load %.1f, Linux %s, %s\n", h.Machine.Cores, h.Machine.Model,
		mebibytes(float64(h.Machine.MemoryBytes)), h.Machine.Load, h.Machine.Kernel, h.Machine.Go)
	if h.Build.Commit != "" {
		fmt.Fprintf(w, "commit: %s (modified: %t)\n", h.Build.Commit, h.Build.Modified)
	}
}
