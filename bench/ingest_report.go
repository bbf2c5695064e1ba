// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"io"
	"slices"
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
	return distinct(r.Rounds, func(round IngestRound) string { return round.Subject })
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

func (r *IngestReport) rounds() rounds[IngestFigures] {
	return rounds[IngestFigures]{head: &r.Head, subjects: r.Subjects(), of: r.of, lines: ingestLines}
}

// Ratios are the peer's figures divided by ours, of each round, by name.
func (r *IngestReport) Ratios(peer string) map[string]Spread { return r.rounds().ratios(peer) }

// MarshalJSON gives the report with a field for each subject.
func (r *IngestReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rounds"] = r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	r.rounds().addRatios(out)
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *IngestReport) WriteText(w io.Writer) error {
	r.writeText(w)
	return r.rounds().write(w)
}

// ingestLines are the figures of IngestReport.
var ingestLines = []line[IngestFigures]{
	figure("entries", func(f IngestFigures) float64 { return float64(f.Entries) }, count, ""),
	figure("time", func(f IngestFigures) float64 { return f.Seconds }, seconds, "seconds"),
	figure("CPU", func(f IngestFigures) float64 { return f.CPUSeconds }, seconds, "cpu"),
	figure("CPU of the etcd", func(f IngestFigures) float64 { return f.EtcdCPUSeconds }, seconds, "etcd_cpu"),
	figure("peak RSS", func(f IngestFigures) float64 { return float64(f.PeakRSSBytes) }, mebibytes, "rss"),
	figure("anonymous, at the end", func(f IngestFigures) float64 { return float64(f.AnonRSSBytes) }, mebibytes, "anon"),
	figure("of its program file", func(f IngestFigures) float64 { return float64(f.FileRSSBytes) }, mebibytes, ""),
}
