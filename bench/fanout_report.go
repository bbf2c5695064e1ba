// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/page"
)

// FanoutFigures are what one round has measured of one size of commits. CPU
// times are those of Seconds, from the first event until the last one was
// delivered to the last agent; those of the etcd have the writes in them.
type FanoutFigures struct {
	// Latency is from when each event is due, so that it has in it what the event
	// waits until its commit is full. Commit is of each commit's last event only,
	// which waits for no other.
	Latency
	Commit  Latency `json:"commit"`
	Seconds float64 `json:"seconds"`
	// Sent is the number of events, Delivered over all agents, Commits the number
	// of writes, and Messages that of the responses in which agents got them.
	Sent      int `json:"sent"`
	Delivered int `json:"delivered"`
	Commits   int `json:"commits"`
	Messages  int `json:"messages"`
	// Bytes is what all agents' connections received.
	Bytes             int64   `json:"bytes"`
	EtcdCPUSeconds    float64 `json:"etcd_cpu_seconds"`
	ProxyCPUSeconds   float64 `json:"proxy_cpu_seconds"`
	ReadersCPUSeconds float64 `json:"readers_cpu_seconds"`
	// EtcdCPUPerEvent and ProxyCPUPerEvent are in microseconds, BytesPerEvent in
	// bytes, each for one event delivered to one agent.
	EtcdCPUPerEvent   float64 `json:"etcd_cpu_per_event_us"`
	ProxyCPUPerEvent  float64 `json:"proxy_cpu_per_event_us"`
	BytesPerEvent     float64 `json:"bytes_per_event"`
	EtcdPeakRSSBytes  int64   `json:"etcd_peak_rss_bytes"`
	ProxyPeakRSSBytes int64   `json:"proxy_peak_rss_bytes"`

	latencies *hdrhistogram.Snapshot
}

// FanoutRound is one measurement of one size of commits.
type FanoutRound struct {
	// Path is Direct or Proxied.
	Path       string `json:"path"`
	CommitSize int    `json:"commit_size"`
	FanoutFigures
}

// FanoutReport is the outcome of Fanout. As JSON, "direct" and "proxy" have the
// figures by the size of commits, each of the round of median CPU; "ratio" has
// the medians of what one put at a time costs divided by what commits of a size
// cost, without a proxy, and "ratios" those of each path with their spread.
type FanoutReport struct {
	Head
	Agents int
	// Rate is the number of events per second, for so many Seconds.
	Rate, Seconds float64
	Rounds        []FanoutRound
}

// Paths are the ways to the agents that were measured.
func (r *FanoutReport) Paths() []string {
	return distinct(r.Rounds, func(round FanoutRound) string { return round.Path })
}

// Sizes are the sizes of commits that were measured, from the smallest on.
func (r *FanoutReport) Sizes() []int {
	var sizes []int
	for _, round := range r.Rounds {
		sizes = append(sizes, round.CommitSize)
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// of are the figures of one size on one path, in the order of the rounds.
func (r *FanoutReport) of(path string, size int) (all []FanoutFigures) {
	for _, round := range r.Rounds {
		if round.Path == path && round.CommitSize == size {
			all = append(all, round.FanoutFigures)
		}
	}
	return all
}

// Median are the figures of the round of median CPU, of the etcd and the proxy
// together; there must be one.
func (r *FanoutReport) Median(path string, size int) FanoutFigures {
	all := r.of(path, size)
	slices.SortStableFunc(all, func(a, b FanoutFigures) int {
		return cmp.Compare(a.EtcdCPUSeconds+a.ProxyCPUSeconds, b.EtcdCPUSeconds+b.ProxyCPUSeconds)
	})
	return all[len(all)/2]
}

// onePut is the peer's name: an etcd that is written one put at a time.
const onePut = "one put at a time"

// against compares commits of a size with one put at a time on the same path.
func (r *FanoutReport) against(path string, size int) rounds[FanoutFigures] {
	return rounds[FanoutFigures]{head: &r.Head, subjects: []string{Waggle, onePut}, lines: fanoutLines, of: func(subject string) []FanoutFigures {
		if subject == onePut {
			return r.of(path, 1)
		}
		return r.of(path, size)
	}}
}

// Ratios are the figures of one put at a time divided by those of commits of a
// size on the same path, for an event delivered: of each round the pair that was
// measured in it. They are empty where one put at a time wasn't measured.
func (r *FanoutReport) Ratios(path string, size int) map[string]Spread {
	if len(r.of(path, 1)) == 0 {
		return nil
	}
	return r.against(path, size).ratios(onePut)
}

// MarshalJSON gives the report with a field for each path.
func (r *FanoutReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	out["agents"], out["rate"], out["seconds"], out["rounds"] = r.Agents, r.Rate, r.Seconds, r.Rounds
	ratio, ratios := map[string]map[string]float64{}, map[string]map[string]map[string]Spread{}
	for _, path := range r.Paths() {
		medians := map[string]FanoutFigures{}
		ratios[path] = map[string]map[string]Spread{}
		for _, size := range r.Sizes() {
			key := strconv.Itoa(size)
			medians[key] = r.Median(path, size)
			if size == 1 {
				continue
			}
			ratios[path][key] = r.Ratios(path, size)
			if path == Direct {
				ratio[key] = map[string]float64{}
				for name, spread := range ratios[path][key] {
					ratio[key][name] = spread.Median
				}
			}
		}
		out[path] = medians
	}
	out["ratio"], out["ratios"] = ratio, ratios
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *FanoutReport) WriteText(w io.Writer) error {
	r.writeText(w)
	fmt.Fprintf(w, "agents: %d; rate: %g events/s for %g s\n", r.Agents, r.Rate, r.Seconds)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, path := range r.Paths() {
		for _, size := range r.Sizes() {
			writeRounds(table, fmt.Sprintf("%s, commits of %d events", path, size), r.of(path, size), fanoutLines)
			ratios := r.Ratios(path, size)
			if size == 1 || len(ratios) == 0 {
				continue
			}
			fmt.Fprintf(table, "\n%s ÷ these\tmin\tmedian\tmax\t\n", onePut)
			for _, l := range fanoutLines {
				if s, ok := ratios[l.ratio]; ok {
					fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%.2f\t\n", l.title, s.Min, s.Median, s.Max)
				}
			}
		}
	}
	return table.Flush()
}

// proxied gives nil for rounds without a proxy.
func proxied(f FanoutFigures) *FanoutFigures {
	if f.ProxyCPUSeconds == 0 {
		return nil
	}
	return &f
}

// fanoutLines are the figures of FanoutReport.
var fanoutLines = []line[FanoutFigures]{
	figure("events sent", func(f FanoutFigures) float64 { return float64(f.Sent) }, count, ""),
	figure("delivered", func(f FanoutFigures) float64 { return float64(f.Delivered) }, count, ""),
	figure("messages", func(f FanoutFigures) float64 { return float64(f.Messages) }, count, ""),
	figure("CPU of the etcd", func(f FanoutFigures) float64 { return f.EtcdCPUSeconds }, seconds, ""),
	figure("for an event delivered", func(f FanoutFigures) float64 { return f.EtcdCPUPerEvent }, microseconds, "etcd_cpu"),
	one("CPU of the proxy", proxied, func(f FanoutFigures) float64 { return f.ProxyCPUSeconds }, seconds, ""),
	one("for an event delivered", proxied, func(f FanoutFigures) float64 { return f.ProxyCPUPerEvent }, microseconds, "proxy_cpu"),
	figure("CPU of all agents", func(f FanoutFigures) float64 { return f.ReadersCPUSeconds }, seconds, ""),
	figure("bytes for an event delivered", func(f FanoutFigures) float64 { return f.BytesPerEvent }, count, "bytes"),
	figure("p50 since the event is due", func(f FanoutFigures) float64 { return f.P50 }, milliseconds, ""),
	figure("p99", func(f FanoutFigures) float64 { return f.P99 }, milliseconds, ""),
	figure("p50 since its commit is due", func(f FanoutFigures) float64 { return f.Commit.P50 }, milliseconds, ""),
	figure("p99", func(f FanoutFigures) float64 { return f.Commit.P99 }, milliseconds, ""),
	figure("peak RSS of the etcd", func(f FanoutFigures) float64 { return float64(f.EtcdPeakRSSBytes) }, mebibytes, ""),
	one("peak RSS of the proxy", proxied, func(f FanoutFigures) float64 { return float64(f.ProxyPeakRSSBytes) }, mebibytes, ""),
}

func microseconds(v float64) string { return fmt.Sprintf("%.2f µs", v) }

// Section is the report as a part of a page.
func (r *FanoutReport) Section() (page.Section, error) {
	cost := page.Plot{X: "events in a commit", Y: "CPU for an event, µs"}
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
	for p, path := range r.Paths() {
		etcd, proxy := page.Line{Name: path + ": etcd", Color: p}, page.Line{Name: path + ": proxy", Color: p, Dashed: true}
		for i, size := range r.Sizes() {
			f := r.Median(path, size)
			etcd.Points = append(etcd.Points, page.Point{X: float64(size), Y: f.EtcdCPUPerEvent})
			if path == Proxied {
				proxy.Points = append(proxy.Points, page.Point{X: float64(size), Y: f.ProxyCPUPerEvent})
			}
			latency.Lines = append(latency.Lines, page.Line{
				Name: fmt.Sprintf("%s, commits of %d", path, size), Color: i, Dashed: path == Proxied, Points: quantiles(f.latencies),
			})
		}
		cost.Lines = append(cost.Lines, etcd, proxy)
	}
	figures, err := draw(
		drawing{"Cost", "Processor time for one event at one agent, against the size of commits; the etcd's has the writes in it.", cost},
		drawing{"Latency", "From when an event is due, with what it waits until its commit is full.", latency})
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Fan-out: %d agents, %g events/s", r.Agents, r.Rate), r, figures)
}
