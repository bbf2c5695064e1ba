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

// IngestFigures are what one round has measured of one subject, from the start
// of its process until it had everything.
type IngestFigures struct {
	// Entries is the number of endpoints, or of the map's entries.
	Entries        int     `json:"entries"`
	Seconds        float64 `json:"seconds"`
	CPUSeconds     float64 `json:"cpu_seconds"`
	EtcdCPUSeconds float64 `json:"etcd_cpu_seconds"`
	// PeakRSSBytes is VmHWM. The next two say what the resident set was made of
	// at the end: what the process allocated, and its program file.
	PeakRSSBytes int64 `json:"peak_rss_bytes"`
	AnonRSSBytes int64 `json:"anon_rss_bytes"`
	FileRSSBytes int64 `json:"file_rss_bytes"`

	samples, etcdSamples []sample
}

// IngestRound is one measurement of one subject.
type IngestRound struct {
	Subject string `json:"subject"`
	IngestFigures
}

// IngestReport is the outcome of Ingest. As JSON, each subject's figures, of the
// round of median time, are a field of its name; "ratio" has the medians of the
// first peer's ratios to ours, and "ratios" those of each with their spread.
type IngestReport struct {
	Head
	Rounds []IngestRound
}

// Subjects are the names of the measured programs.
func (r *IngestReport) Subjects() []string {
	var names []string
	for _, round := range r.Rounds {
		if !slices.Contains(names, round.Subject) {
			names = append(names, round.Subject)
		}
	}
	return names
}

// of are the figures of one subject, in the order of the rounds.
func (r *IngestReport) of(subject string) (all []IngestFigures) {
	for _, round := range r.Rounds {
		if round.Subject == subject {
			all = append(all, round.IngestFigures)
		}
	}
	return all
}

// Median are the figures of the subject's round of median time; it must have one.
func (r *IngestReport) Median(subject string) IngestFigures {
	all := r.of(subject)
	slices.SortStableFunc(all, func(a, b IngestFigures) int { return cmp.Compare(a.Seconds, b.Seconds) })
	return all[len(all)/2]
}

var ingestRatioOf = []struct {
	name, title string
	of          func(IngestFigures) float64
}{
	{"seconds", "time", func(f IngestFigures) float64 { return f.Seconds }},
	{"cpu", "CPU", func(f IngestFigures) float64 { return f.CPUSeconds }},
	{"etcd_cpu", "CPU of the etcd", func(f IngestFigures) float64 { return f.EtcdCPUSeconds }},
	{"rss", "peak RSS", func(f IngestFigures) float64 { return float64(f.PeakRSSBytes) }},
	{"anon", "anonymous, at the end", func(f IngestFigures) float64 { return float64(f.AnonRSSBytes) }},
}

// Ratios are the peer's figures divided by ours, of each round.
func (r *IngestReport) Ratios(peer string) map[string]Spread {
	ours, theirs := r.of(Waggle), r.of(peer)
	out := map[string]Spread{}
	for _, ratio := range ingestRatioOf {
		var values []float64
		for i := range min(len(ours), len(theirs)) {
			if our := ratio.of(ours[i]); our > 0 {
				values = append(values, ratio.of(theirs[i])/our)
			}
		}
		out[ratio.name] = spreadOf(values)
	}
	return out
}

func (r *IngestReport) peers() []string {
	return slices.DeleteFunc(r.Subjects(), func(name string) bool { return name == Waggle })
}

// MarshalJSON gives the report with a field for each subject.
func (r *IngestReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rounds"] = r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	if peers := r.peers(); len(peers) > 0 {
		ratios, medians := map[string]map[string]Spread{}, map[string]float64{}
		for _, peer := range peers {
			ratios[peer] = r.Ratios(peer)
		}
		for name, spread := range ratios[peers[0]] {
			medians[name] = spread.Median
		}
		out["ratio"], out["ratios"] = medians, ratios
	}
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *IngestReport) WriteText(w io.Writer) error {
	r.writeText(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, name := range r.Subjects() {
		all := r.of(name)
		fmt.Fprintf(table, "\n%s: %s\n%d rounds\tmin\tmedian\tmax\t\n", name, r.Allowed[name], len(all))
		for _, line := range []struct {
			name   string
			of     func(IngestFigures) float64
			format func(float64) string
		}{
			{"entries", func(f IngestFigures) float64 { return float64(f.Entries) }, func(v float64) string { return fmt.Sprintf("%.0f", v) }},
			{"time", func(f IngestFigures) float64 { return f.Seconds }, seconds},
			{"CPU", func(f IngestFigures) float64 { return f.CPUSeconds }, seconds},
			{"CPU of the etcd", func(f IngestFigures) float64 { return f.EtcdCPUSeconds }, seconds},
			{"peak RSS", func(f IngestFigures) float64 { return float64(f.PeakRSSBytes) }, mebibytes},
			{"anonymous, at the end", func(f IngestFigures) float64 { return float64(f.AnonRSSBytes) }, mebibytes},
			{"of its program file", func(f IngestFigures) float64 { return float64(f.FileRSSBytes) }, mebibytes},
		} {
			var values []float64
			for _, f := range all {
				values = append(values, line.of(f))
			}
			s := spreadOf(values)
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t\n", line.name, line.format(s.Min), line.format(s.Median), line.format(s.Max))
		}
	}
	for _, peer := range r.peers() {
		fmt.Fprintf(table, "\n%s ÷ %s\tmin\tmedian\tmax\t\n", peer, Waggle)
		ratios := r.Ratios(peer)
		for _, ratio := range ingestRatioOf {
			s := ratios[ratio.name]
			fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%.2f\t\n", ratio.title, s.Min, s.Median, s.Max)
		}
	}
	return table.Flush()
}
