// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/page"
)

// ExportFigures are what one round has measured of one subject: first from the
// start of its process until all is in its etcd, the figures with Ready in their
// names; then of Seconds, from the first endpoint that is added to the last.
type ExportFigures struct {
	// Latency is from when an endpoint is due to be added until the subject's etcd
	// has it, of those that it got. Accepted is until the API server said that it
	// has it, and Own from then on: what the exporter and its etcd take. Where the
	// etcd had it first, Own is 0.001 ms.
	Latency
	Accepted Latency `json:"accepted"`
	Own      Latency `json:"own"`
	// Keys is the number of keys at the start.
	Keys                int     `json:"keys"`
	ReadySeconds        float64 `json:"ready_seconds"`
	ReadyCPUSeconds     float64 `json:"ready_cpu_seconds"`
	ReadyEtcdCPUSeconds float64 `json:"ready_etcd_cpu_seconds"`
	ReadyPeakRSSBytes   int64   `json:"ready_peak_rss_bytes"`
	Seconds             float64 `json:"seconds"`
	// Writes is how many writes to the API server the endpoints were added by: a
	// slice is written once for all that came during its last write.
	Writes int `json:"writes"`
	// Sent is the number of endpoints that were added, and Delivered of those that
	// had reached the etcd at the end. Drained says that this is all.
	Sent      int  `json:"sent"`
	Delivered int  `json:"delivered"`
	Drained   bool `json:"drained"`
	// QueueEnd is how many hadn't reached it when the last one was added, and
	// QueueMax the most at any time.
	QueueEnd int `json:"queue_end"`
	QueueMax int `json:"queue_max"`
	// Commits is the number of commits to the etcd with an endpoint in them, and
	// CommitEvents the number of endpoints in all of them.
	Commits        int     `json:"commits"`
	CommitEvents   int     `json:"commit_events"`
	CPUSeconds     float64 `json:"cpu_seconds"`
	EtcdCPUSeconds float64 `json:"etcd_cpu_seconds"`
	// KubernetesCPUSeconds is of the API server and its etcd.
	KubernetesCPUSeconds float64 `json:"kubernetes_cpu_seconds"`
	PeakRSSBytes         int64   `json:"peak_rss_bytes"`

	latencies            *hdrhistogram.Snapshot
	samples, etcdSamples []sample
}

// ExportRound is one measurement of one subject.
type ExportRound struct {
	// Mode is one of ExportModes.
	Mode    string `json:"mode"`
	Subject string `json:"subject"`
	ExportFigures
}

// ExportReport is the outcome of Export. As JSON there is a field for each mode;
// in it each subject's figures, of the round of median p99, are a field of its
// name, "ratio" has the medians of the first peer's figures divided by ours, and
// "ratios" those of each peer with their spread.
type ExportReport struct {
	Head
	// Rate is the number of endpoints per second, for so many Seconds.
	Rate, Seconds float64
	Rounds        []ExportRound
}

// Modes are the kinds of objects that were measured.
func (r *ExportReport) Modes() []string {
	return distinct(r.Rounds, func(round ExportRound) string { return round.Mode })
}

// Subjects are the names of the measured programs.
func (r *ExportReport) Subjects() []string {
	return distinct(r.Rounds, func(round ExportRound) string { return round.Subject })
}

// of are the figures of one subject in one mode, in the order of the rounds.
func (r *ExportReport) of(mode, subject string) (all []ExportFigures) {
	for _, round := range r.Rounds {
		if round.Mode == mode && round.Subject == subject {
			all = append(all, round.ExportFigures)
		}
	}
	return all
}

// Median are the figures of the round of median p99; there must be one.
func (r *ExportReport) Median(mode, subject string) ExportFigures {
	all := r.of(mode, subject)
	slices.SortStableFunc(all, func(a, b ExportFigures) int { return cmp.Compare(a.P99, b.P99) })
	return all[len(all)/2]
}

// in are the rounds of one mode.
func (r *ExportReport) in(mode string) rounds[ExportFigures] {
	return rounds[ExportFigures]{head: &r.Head, subjects: r.Subjects(), lines: exportLines, of: func(subject string) []ExportFigures {
		return r.of(mode, subject)
	}}
}

// MarshalJSON gives the report with a field for each mode.
func (r *ExportReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rate"], out["seconds"], out["rounds"] = r.Rate, r.Seconds, r.Rounds
	for _, mode := range r.Modes() {
		in := map[string]any{}
		for _, name := range r.Subjects() {
			in[name] = r.Median(mode, name)
		}
		r.in(mode).addRatios(in)
		out[mode] = in
	}
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *ExportReport) WriteText(w io.Writer) error {
	r.writeText(w)
	fmt.Fprintf(w, "rate: %g endpoints/s for %g s\n", r.Rate, r.Seconds)
	for _, mode := range r.Modes() {
		fmt.Fprintf(w, "\n%s\n", mode)
		if err := r.in(mode).write(w); err != nil {
			return err
		}
	}
	return nil
}

// exportLines are the figures of ExportReport.
var exportLines = []line[ExportFigures]{
	figure("ready", func(f ExportFigures) float64 { return f.ReadySeconds }, seconds, "ready"),
	figure("CPU until ready", func(f ExportFigures) float64 { return f.ReadyCPUSeconds }, seconds, "ready_cpu"),
	figure("CPU of the etcd until ready", func(f ExportFigures) float64 { return f.ReadyEtcdCPUSeconds }, seconds, "ready_etcd_cpu"),
	figure("p50 until the etcd has it", func(f ExportFigures) float64 { return f.P50 }, milliseconds, "p50"),
	figure("p99", func(f ExportFigures) float64 { return f.P99 }, milliseconds, "p99"),
	figure("max", func(f ExportFigures) float64 { return f.Max }, milliseconds, ""),
	figure("p50 until the API server has it", func(f ExportFigures) float64 { return f.Accepted.P50 }, milliseconds, ""),
	figure("p99", func(f ExportFigures) float64 { return f.Accepted.P99 }, milliseconds, ""),
	figure("p50 from then on", func(f ExportFigures) float64 { return f.Own.P50 }, milliseconds, ""),
	figure("p99 from then on", func(f ExportFigures) float64 { return f.Own.P99 }, milliseconds, "own_p99"),
	figure("writes to the API server", func(f ExportFigures) float64 { return float64(f.Writes) }, count, ""),
	figure("sent", func(f ExportFigures) float64 { return float64(f.Sent) }, count, ""),
	figure("delivered", func(f ExportFigures) float64 { return float64(f.Delivered) }, count, ""),
	figure("queue at the end", func(f ExportFigures) float64 { return float64(f.QueueEnd) }, count, ""),
	figure("commits", func(f ExportFigures) float64 { return float64(f.Commits) }, count, ""),
	figure("endpoints per commit", func(f ExportFigures) float64 { return float64(f.CommitEvents) / float64(max(f.Commits, 1)) }, average, ""),
	figure("CPU", func(f ExportFigures) float64 { return f.CPUSeconds }, seconds, "cpu"),
	figure("CPU of the etcd", func(f ExportFigures) float64 { return f.EtcdCPUSeconds }, seconds, "etcd_cpu"),
	figure("CPU of the API server and its etcd", func(f ExportFigures) float64 { return f.KubernetesCPUSeconds }, seconds, ""),
	figure("peak RSS", func(f ExportFigures) float64 { return float64(f.PeakRSSBytes) }, mebibytes, "rss"),
}

// Section is the report as a part of a page.
func (r *ExportReport) Section() (page.Section, error) {
	var figures []page.Figure
	for _, mode := range r.Modes() {
		latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
		var sides []side
		for i, name := range r.Subjects() {
			f := r.Median(mode, name)
			latency.Lines = append(latency.Lines, page.Line{Name: name, Color: i, Points: quantiles(f.latencies)})
			sides = append(sides, side{name, f.samples, f.etcdSamples})
		}
		drawn, err := draw(drawing{"Latency, " + mode, "From when an endpoint is due to be added to Kubernetes until the exporter's etcd has it.", latency})
		if err != nil {
			return page.Section{}, err
		}
		used, err := usage(sides)
		if err != nil {
			return page.Section{}, err
		}
		figures = append(append(figures, drawn...), used...)
	}
	return section(fmt.Sprintf("Export: %d endpoints, and %g/s more", r.Mesh.Endpoints, r.Rate), r, figures)
}
