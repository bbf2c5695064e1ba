// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/waggle-mesh/waggle/bench/follower"
	"github.com/waggle-mesh/waggle/bench/page"
)

// RolloutFigures are what one round has measured of one subject, from when the
// source's address leads to its replica until all KVStoreMeshes have listed it and
// have what it says.
type RolloutFigures struct {
	// Seconds is the time until all were in sync again; the first one and half of
	// them were so after FirstSeconds and MedianSeconds.
	Seconds       float64 `json:"seconds"`
	MedianSeconds float64 `json:"median_seconds"`
	FirstSeconds  float64 `json:"first_seconds"`
	// SourceCPUSeconds is of the replica's etcd, CPUSeconds of all KVStoreMeshes.
	SourceCPUSeconds float64 `json:"source_cpu_seconds"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	// SentBytes is what the replica has sent to them, by etcd's own metric
	// etcd_network_client_grpc_sent_bytes_total.
	SentBytes int64 `json:"sent_bytes"`
	// Again is what they listed there, and Connected what they had listed at the
	// source when they were started, counted at the etcd.
	Again     follower.ListStatus `json:"again"`
	Connected follower.ListStatus `json:"connected"`
	// SourcePeakRSSBytes is the VmHWM of the replica, filling included.
	SourcePeakRSSBytes int64 `json:"source_peak_rss_bytes"`
}

// RolloutRound is one measurement of one subject.
type RolloutRound struct {
	Subject string `json:"subject"`
	RolloutFigures
}

// RolloutReport is the outcome of Rollout. As JSON, each subject's figures, of the
// round of median time, are a field of its name; "ratio" has the medians of the
// first peer's ratios to ours, and "ratios" those of each with their spread.
type RolloutReport struct {
	Head
	// KVStoreMeshes is the number of those that were connected.
	KVStoreMeshes int
	Rounds        []RolloutRound
}

// Subjects are the names of the measured programs.
func (r *RolloutReport) Subjects() []string {
	return distinct(r.Rounds, func(round RolloutRound) string { return round.Subject })
}

func (r *RolloutReport) of(subject string) (all []RolloutFigures) {
	for _, round := range r.Rounds {
		if round.Subject == subject {
			all = append(all, round.RolloutFigures)
		}
	}
	return all
}

// Median are the figures of the subject's round of median time; it must have one.
func (r *RolloutReport) Median(subject string) RolloutFigures {
	all := r.of(subject)
	slices.SortStableFunc(all, func(a, b RolloutFigures) int { return cmp.Compare(a.Seconds, b.Seconds) })
	return all[len(all)/2]
}

func (r *RolloutReport) rounds() rounds[RolloutFigures] {
	return rounds[RolloutFigures]{head: &r.Head, subjects: r.Subjects(), of: r.of, lines: rolloutLines}
}

// MarshalJSON gives the report with a field for each subject.
func (r *RolloutReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["kvstoremeshes"], out["rounds"] = r.KVStoreMeshes, r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	r.rounds().addRatios(out)
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *RolloutReport) WriteText(w io.Writer) error {
	r.writeText(w)
	fmt.Fprintf(w, "connected: %d KVStoreMeshes\n", r.KVStoreMeshes)
	return r.rounds().write(w)
}

// Section is the report as a part of a page.
func (r *RolloutReport) Section() (page.Section, error) {
	return section(fmt.Sprintf("Rollout: %d KVStoreMeshes, %d keys", r.KVStoreMeshes, r.Mesh.Keys()), r, nil)
}

// rolloutLines are the figures of RolloutReport.
var rolloutLines = []line[RolloutFigures]{
	figure("all in sync again", func(f RolloutFigures) float64 { return f.Seconds }, seconds, "seconds"),
	figure("half of them", func(f RolloutFigures) float64 { return f.MedianSeconds }, seconds, "median_seconds"),
	figure("the first one", func(f RolloutFigures) float64 { return f.FirstSeconds }, seconds, ""),
	figure("peak of lists under way", func(f RolloutFigures) float64 { return float64(f.Again.Peak) }, count, "peak_lists"),
	figure("peak of pages being made", func(f RolloutFigures) float64 { return float64(f.Again.PeakPages) }, count, "peak_pages"),
	figure("lists", func(f RolloutFigures) float64 { return float64(f.Again.Lists) }, count, "lists"),
	figure("sent by the source", func(f RolloutFigures) float64 { return float64(f.SentBytes) }, mebibytes, "sent_bytes"),
	figure("CPU of the source", func(f RolloutFigures) float64 { return f.SourceCPUSeconds }, seconds, "source_cpu"),
	figure("peak RSS of the source", func(f RolloutFigures) float64 { return float64(f.SourcePeakRSSBytes) }, mebibytes, "source_rss"),
	figure("CPU of the KVStoreMeshes", func(f RolloutFigures) float64 { return f.CPUSeconds }, seconds, "cpu"),
	figure("lists at their start", func(f RolloutFigures) float64 { return float64(f.Connected.Lists) }, count, ""),
}
