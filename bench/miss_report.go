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

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/page"
)

// MissFigures are what one round has measured.
type MissFigures struct {
	// Latency is from right before a packet is sent until the map has its destination,
	// of all that were resolved.
	Latency
	Resolved int `json:"resolved"`
	// Seconds is for all of them, and the CPU times are of that time.
	Seconds               float64 `json:"seconds"`
	AgentCPUSeconds       float64 `json:"agent_cpu_seconds"`
	KVStoreMeshCPUSeconds float64 `json:"kvstoremesh_cpu_seconds"`
	SourceCPUSeconds      float64 `json:"source_cpu_seconds"`
	// Signals are those that the kernel gave, RateLimited the packets for which it gave
	// none since there were too many, and SentAgain the packets that were sent again
	// since the map still lacked the address. ReadThrough is how many signals the
	// read-through has answered.
	Signals     int `json:"signals"`
	RateLimited int `json:"rate_limited"`
	SentAgain   int `json:"sent_again"`
	ReadThrough int `json:"read_through"`
	// LookEveryMicroseconds is the time between two looks at the map, by which a
	// latency may be too long.
	LookEveryMicroseconds float64 `json:"look_every_us"`
	// PerPacketHit, PerPacketMiss and PerPacketOther are nanoseconds that the program
	// takes for a packet to an address that the map has, to one that it doesn't have and
	// that was signalled a moment ago, and to one that is no remote pod's.
	PerPacketHit   float64 `json:"ns_per_packet_hit"`
	PerPacketMiss  float64 `json:"ns_per_packet_miss"`
	PerPacketOther float64 `json:"ns_per_packet_other"`
	// Scan is nil where there was none.
	Scan *ScanFigures `json:"scan,omitempty"`

	latencies, inScan *hdrhistogram.Snapshot
}

// ScanFigures are of the time in which a pod has sent to absent addresses as fast as it
// could; Latency is that of single misses of another pod.
type ScanFigures struct {
	Latency
	Packets         int     `json:"packets"`
	Seconds         float64 `json:"seconds"`
	AgentCPUSeconds float64 `json:"agent_cpu_seconds"`
	// GrownBytes is how much more memory the agent had at its largest than before.
	GrownBytes  int64 `json:"grown_bytes"`
	Signals     int   `json:"signals"`
	RateLimited int   `json:"rate_limited"`
	SentAgain   int   `json:"sent_again"`
}

// MissReport is the outcome of Miss. As JSON, the figures of the round of median p99
// are fields of it, and all rounds are in "rounds".
type MissReport struct {
	Head
	Misses, Concurrency, Entries int
	Rounds                       []MissFigures
}

// Median is the round of median p99.
func (r *MissReport) Median() MissFigures {
	all := slices.Clone(r.Rounds)
	slices.SortStableFunc(all, func(a, b MissFigures) int { return cmp.Compare(a.P99, b.P99) })
	return all[len(all)/2]
}

// MarshalJSON gives the report with the median round's figures.
func (r *MissReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	raw, err := json.Marshal(r.Median())
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, err
	}
	out["misses"], out["concurrency"], out["entries"], out["rounds"] = r.Misses, r.Concurrency, r.Entries, r.Rounds
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *MissReport) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%s: %d addresses, %d at a time, %s\n", r.Benchmark, r.Misses, r.Concurrency, r.Allowed[Waggle])
	r.writeMachine(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	writeRounds(table, "from the packet to the entry in the map", r.Rounds, missLines)
	return table.Flush()
}

func scanned(f MissFigures) *ScanFigures { return f.Scan }

// missLines are the figures of MissReport.
var missLines = []line[MissFigures]{
	figure("resolved", func(f MissFigures) float64 { return float64(f.Resolved) }, count, ""),
	figure("p50", func(f MissFigures) float64 { return f.P50 }, milliseconds, ""),
	figure("p99", func(f MissFigures) float64 { return f.P99 }, milliseconds, ""),
	figure("max", func(f MissFigures) float64 { return f.Max }, milliseconds, ""),
	figure("time between two looks at the map", func(f MissFigures) float64 { return f.LookEveryMicroseconds }, microseconds, ""),
	figure("time for all", func(f MissFigures) float64 { return f.Seconds }, seconds, ""),
	figure("CPU of the agent", func(f MissFigures) float64 { return f.AgentCPUSeconds }, seconds, ""),
	figure("CPU of the KVStoreMesh", func(f MissFigures) float64 { return f.KVStoreMeshCPUSeconds }, seconds, ""),
	figure("CPU of the source etcd", func(f MissFigures) float64 { return f.SourceCPUSeconds }, seconds, ""),
	figure("signals", func(f MissFigures) float64 { return float64(f.Signals) }, count, ""),
	figure("rate-limited", func(f MissFigures) float64 { return float64(f.RateLimited) }, count, ""),
	figure("packets sent again", func(f MissFigures) float64 { return float64(f.SentAgain) }, count, ""),
	figure("a packet to a known address", func(f MissFigures) float64 { return f.PerPacketHit }, nanoseconds, ""),
	figure("to an unknown one, again", func(f MissFigures) float64 { return f.PerPacketMiss }, nanoseconds, ""),
	figure("to no remote pod", func(f MissFigures) float64 { return f.PerPacketOther }, nanoseconds, ""),
	one("scan: packets", scanned, func(f ScanFigures) float64 { return float64(f.Packets) }, count, ""),
	one("packets a second", scanned, func(f ScanFigures) float64 { return float64(f.Packets) / f.Seconds }, count, ""),
	one("CPU of the agent, of one processor", scanned, func(f ScanFigures) float64 { return 100 * f.AgentCPUSeconds / f.Seconds }, percent, ""),
	one("growth of its memory", scanned, func(f ScanFigures) float64 { return float64(f.GrownBytes) }, mebibytes, ""),
	one("signals", scanned, func(f ScanFigures) float64 { return float64(f.Signals) }, count, ""),
	one("rate-limited", scanned, func(f ScanFigures) float64 { return float64(f.RateLimited) }, count, ""),
	one("another pod's misses: p50", scanned, func(f ScanFigures) float64 { return f.P50 }, milliseconds, ""),
	one("p99", scanned, func(f ScanFigures) float64 { return f.P99 }, milliseconds, ""),
	one("max", scanned, func(f ScanFigures) float64 { return f.Max }, milliseconds, ""),
}

func nanoseconds(v float64) string { return fmt.Sprintf("%.0f ns", v) }

// Section is the report as a part of a page.
func (r *MissReport) Section() (page.Section, error) {
	f := r.Median()
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true, Lines: []page.Line{
		{Name: fmt.Sprintf("%d at a time", r.Concurrency), Points: quantiles(f.latencies)},
	}}
	if f.Scan != nil {
		latency.Lines = append(latency.Lines, page.Line{Name: "one at a time, while another pod scans", Color: 1, Points: quantiles(f.inScan)})
	}
	figures, err := draw(drawing{"Latency", "From a packet to an address that the map doesn't know until the map has it.", latency})
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("On-demand resolution: %d misses, %d at a time", r.Misses, r.Concurrency), r, figures)
}
