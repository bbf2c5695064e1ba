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
)

// Latency are quantiles of the time since an event was due, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// ChurnFigures are what one round has measured of one subject. CPU times are
// those of Seconds, from the first event to the last.
type ChurnFigures struct {
	// Latency is until the agent's table had the event, of the events that it saw.
	Latency
	// Cache is until the local etcd had it.
	Cache   Latency `json:"cache"`
	Seconds float64 `json:"seconds"`
	// Sent is the number of events, and Delivered of those that had reached the
	// agent at the end. Overtaken is how many of these it never saw since the
	// next state of the same address was there as soon.
	Sent      int `json:"sent"`
	Delivered int `json:"delivered"`
	Overtaken int `json:"overtaken"`
	// Drained says that nothing was missing at the end.
	Drained bool `json:"drained"`
	// QueueEnd is how many events hadn't reached the local etcd when the last one
	// was sent, and QueueMax the most at any time.
	QueueEnd int `json:"queue_end"`
	QueueMax int `json:"queue_max"`
	// Commits is the number of commits to the local etcd with an endpoint in
	// them, and CommitEvents the number of endpoints in all of them.
	Commits          int     `json:"commits"`
	CommitEvents     int     `json:"commit_events"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	EtcdCPUSeconds   float64 `json:"etcd_cpu_seconds"`
	SourceCPUSeconds float64 `json:"source_cpu_seconds"`
	AgentCPUSeconds  float64 `json:"agent_cpu_seconds"`
	PeakRSSBytes     int64   `json:"peak_rss_bytes"`

	agent, cache         *hdrhistogram.Snapshot
	samples, etcdSamples []sample
}

// ChurnRound is one measurement of one subject.
type ChurnRound struct {
	Subject string `json:"subject"`
	ChurnFigures
}

// ChurnReport is the outcome of Churn. As JSON, each subject's figures, of the
// round of median p99, are a field of its name.
type ChurnReport struct {
	Head
	// Rate is the number of events per second, for so many Seconds.
	Rate, Seconds float64
	Rounds        []ChurnRound
}

// Subjects are the names of the measured programs.
func (r *ChurnReport) Subjects() []string {
	return distinct(r.Rounds, func(round ChurnRound) string { return round.Subject })
}

// of are the figures of one subject, in the order of the rounds.
func (r *ChurnReport) of(subject string) (all []ChurnFigures) {
	for _, round := range r.Rounds {
		if round.Subject == subject {
			all = append(all, round.ChurnFigures)
		}
	}
	return all
}

// Median are the figures of the subject's round of median p99; it must have one.
func (r *ChurnReport) Median(subject string) ChurnFigures {
	all := r.of(subject)
	slices.SortStableFunc(all, func(a, b ChurnFigures) int { return cmp.Compare(a.P99, b.P99) })
	return all[len(all)/2]
}

// MarshalJSON gives the report with a field for each subject.
func (r *ChurnReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["rate"], out["seconds"], out["rounds"] = r.Rate, r.Seconds, r.Rounds
	for _, name := range r.Subjects() {
		out[name] = r.Median(name)
	}
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *ChurnReport) WriteText(w io.Writer) error {
	r.writeText(w)
	fmt.Fprintf(w, "rate: %g events/s for %g s\n", r.Rate, r.Seconds)
	return rounds[ChurnFigures]{head: &r.Head, subjects: r.Subjects(), of: r.of, lines: churnLines}.write(w)
}

// churnLines are the figures of ChurnReport.
var churnLines = []line[ChurnFigures]{
	figure("p50 until the agent's table", func(f ChurnFigures) float64 { return f.P50 }, milliseconds, ""),
	figure("p90", func(f ChurnFigures) float64 { return f.P90 }, milliseconds, ""),
	figure("p99", func(f ChurnFigures) float64 { return f.P99 }, milliseconds, ""),
	figure("max", func(f ChurnFigures) float64 { return f.Max }, milliseconds, ""),
	figure("p99 until the local etcd", func(f ChurnFigures) float64 { return f.Cache.P99 }, milliseconds, ""),
	figure("events sent", func(f ChurnFigures) float64 { return float64(f.Sent) }, count, ""),
	figure("delivered", func(f ChurnFigures) float64 { return float64(f.Delivered) }, count, ""),
	figure("of which overtaken", func(f ChurnFigures) float64 { return float64(f.Overtaken) }, count, ""),
	figure("queue at the end", func(f ChurnFigures) float64 { return float64(f.QueueEnd) }, count, ""),
	figure("longest queue", func(f ChurnFigures) float64 { return float64(f.QueueMax) }, count, ""),
	figure("commits", func(f ChurnFigures) float64 { return float64(f.Commits) }, count, ""),
	figure("events per commit", func(f ChurnFigures) float64 { return float64(f.CommitEvents) / float64(max(f.Commits, 1)) }, average, ""),
	figure("CPU", func(f ChurnFigures) float64 { return f.CPUSeconds }, seconds, ""),
	figure("CPU of the local etcd", func(f ChurnFigures) float64 { return f.EtcdCPUSeconds }, seconds, ""),
	figure("CPU of the source etcds", func(f ChurnFigures) float64 { return f.SourceCPUSeconds }, seconds, ""),
	figure("CPU of the agent", func(f ChurnFigures) float64 { return f.AgentCPUSeconds }, seconds, ""),
	figure("peak RSS", func(f ChurnFigures) float64 { return float64(f.PeakRSSBytes) }, mebibytes, ""),
}
