// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/page"
)

// The processes whose cost is compared, as reports name them.
const (
	apiServerPart     = "apiserver"
	apiServerEtcdPart = "apiserver_etcd"
)

// InClusterFigures are what one round has measured of one mode. CPU times are in
// seconds, of Seconds: from the first change that counts until all agents have
// all, and in each mode for at least a second after the last change. Memory is
// what was resident at the end of that time, in bytes.
type InClusterFigures struct {
	APIServerCPU     float64
	APIServerRSS     int64
	APIServerEtcdCPU float64
	// WatchConnections are the watches that are open at the API server, those of its
	// own among them; WatchEventsPerMin what it sends to them.
	WatchConnections  int
	WatchEventsPerMin float64
	// Latency is from when a write is sent to the API server until the row is in the
	// table of an agent, over all writes and all agents, and Beyond since the API
	// server has said that it has it. Without agents there is none.
	Latency
	Beyond Latency
	// TotalCPU is of all the processes that carry the state to the agents: not of
	// the agents, and not of who writes.
	TotalCPU float64

	Seconds float64
	// Writes is the number of writes of single objects, and Delivered of them over
	// all agents. Overtaken is how many of these a table never had since the next
	// state of the same object was there as soon.
	Writes, Delivered, Overtaken int
	// Late is how long after they were due writes were sent, and Request how long
	// the API server took for each.
	Late, Request Latency
	// DrainSeconds is how long after the last write was accepted the last agent had
	// it: in how far it can't keep up, where it is more than a latency.
	DrainSeconds float64
	// Busy is which part of all processors' time was used, by whomever. Near 1, what
	// is measured is the machine: latencies are those of waiting for a processor.
	Busy float64
	// AgentsCPUSeconds is of all agents together.
	AgentsCPUSeconds float64
	// SyncSeconds is how long it took until all agents had all, from nothing, and
	// SyncCPUSeconds what that has cost in TotalCPU's processes.
	SyncSeconds, SyncCPUSeconds float64
	// PeakRSS is the most memory that each process had resident since its start.
	PeakRSS map[string]int64
	Metrics InClusterMetrics

	latencies *hdrhistogram.Snapshot
	samples   map[string][]sample // by process
}

// InClusterMetrics are figures under the names that operators know.
type InClusterMetrics struct {
	// CPUSeconds and ResidentBytes are by process, by the kernel's accounts, as a
	// process counts itself.
	CPUSeconds    map[string]float64 `json:"process_cpu_seconds_total"`
	ResidentBytes map[string]int64   `json:"process_resident_memory_bytes"`
	// Requests are the API server's, watches not counted.
	Requests Quantiles `json:"apiserver_request_duration_seconds"`
	// Watches are the open ones by resource at the end.
	Watches map[string]int `json:"apiserver_longrunning_requests"`
	// WatchEventsPerMin are by resource.
	WatchEventsPerMin map[string]float64 `json:"apiserver_watch_events_total_per_min"`
}

// Quantiles are in seconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// InClusterRound is one measurement of one mode.
type InClusterRound struct {
	Mode string
	InClusterFigures
}

// InClusterReport is the outcome of InCluster. As JSON there is a field for each
// mode, with the figures of its round of median TotalCPU.
type InClusterReport struct {
	Head
	Agents, Pods       int
	Rate, ServicesRate float64
	// Seconds is how long changes were made.
	Seconds        float64
	EndpointSlices bool
	Rounds         []InClusterRound
}

// Modes are those that were measured.
func (r *InClusterReport) Modes() []string {
	return distinct(r.Rounds, func(round InClusterRound) string { return round.Mode })
}

// of are the figures of one mode, in the order of the rounds.
func (r *InClusterReport) of(mode string) (all []InClusterFigures) {
	for _, round := range r.Rounds {
		if round.Mode == mode {
			all = append(all, round.InClusterFigures)
		}
	}
	return all
}

// Median are the figures of the mode's round of median TotalCPU; it must have one.
func (r *InClusterReport) Median(mode string) InClusterFigures {
	all := r.of(mode)
	slices.SortStableFunc(all, func(a, b InClusterFigures) int { return cmp.Compare(a.TotalCPU, b.TotalCPU) })
	return all[len(all)/2]
}

// fields are the figures that modes are compared by.
func (f *InClusterFigures) fields(mode string) map[string]any {
	out := map[string]any{
		"apiserver_cpu": f.APIServerCPU, "apiserver_rss": f.APIServerRSS, "apiserver_etcd_cpu": f.APIServerEtcdCPU,
		"watch_connections": f.WatchConnections, "watch_events_per_min": f.WatchEventsPerMin, "total_cpu": f.TotalCPU,
	}
	if mode != Idle {
		out["p50_ms"], out["p99_ms"], out["max_ms"] = f.P50, f.P99, f.Max
	}
	return out
}

// details are what else is known of a round.
func (f *InClusterFigures) details(mode string) map[string]any {
	out := map[string]any{
		"mode": mode, "seconds": f.Seconds, "writes": f.Writes, "late": f.Late, "request": f.Request, "busy": f.Busy,
		"peak_rss_bytes": f.PeakRSS, "metrics": f.Metrics,
	}
	if mode != Idle {
		out["delivered"], out["overtaken"], out["beyond"] = f.Delivered, f.Overtaken, f.Beyond
		out["drain_seconds"], out["agents_cpu_seconds"] = f.DrainSeconds, f.AgentsCPUSeconds
		out["sync_seconds"], out["sync_cpu_seconds"] = f.SyncSeconds, f.SyncCPUSeconds
	}
	for name, value := range f.fields(mode) {
		out[name] = value
	}
	return out
}

// MarshalJSON gives the report with a field for each mode; "rounds" has all that
// is known of each round.
func (r *InClusterReport) MarshalJSON() ([]byte, error) {
	out := r.Head.fields()
	delete(out, "sources")
	delete(out, "allowed")
	out["parameters"] = map[string]any{
		"agents": r.Agents, "pods": r.Pods, "rate": r.Rate, "services_rate": r.ServicesRate, "seconds": r.Seconds,
		"endpoint_slices": r.EndpointSlices, "seed": r.Mesh.Seed,
	}
	for _, mode := range r.Modes() {
		f := r.Median(mode)
		out[mode] = f.fields(mode)
	}
	var rounds []map[string]any
	for i := range r.Rounds {
		rounds = append(rounds, r.Rounds[i].details(r.Rounds[i].Mode))
	}
	out["rounds"] = rounds
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *InClusterReport) WriteText(w io.Writer) error {
	objects := "CiliumEndpoints"
	if r.EndpointSlices {
		objects = "CiliumEndpointSlices"
	}
	fmt.Fprintf(w, "%s: %d agents, %d pods as %s, %g changes/s of pods and %g/s of services for %g s, seed %d\n",
		r.Benchmark, r.Agents, r.Pods, objects, r.Rate, r.ServicesRate, r.Seconds, r.Mesh.Seed)
	r.writeMachine(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, mode := range r.Modes() {
		writeRounds(table, mode, r.of(mode), inClusterLines)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, mode := range r.Modes() {
		m := r.Median(mode).Metrics
		fmt.Fprintf(w, "\n%s\n  apiserver_longrunning_requests:%s\n  apiserver_watch_events_total per minute:%s\n", mode,
			listed(m.Watches), listed(m.WatchEventsPerMin))
	}
	return nil
}

// listed are the values by name.
func listed[V int | float64](values map[string]V) (out string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		out += fmt.Sprintf(" %s=%.0f", name, float64(values[name]))
	}
	return out
}

// agentsOnly gives the figures of a mode that has agents.
func agentsOnly(f InClusterFigures) *InClusterFigures {
	if f.Delivered == 0 {
		return nil
	}
	return &f
}

// inClusterLines are the figures of InClusterReport.
var inClusterLines = []line[InClusterFigures]{
	figure("CPU of the API server", func(f InClusterFigures) float64 { return f.APIServerCPU }, seconds, ""),
	figure("of its etcd", func(f InClusterFigures) float64 { return f.APIServerEtcdCPU }, seconds, ""),
	figure("together", func(f InClusterFigures) float64 { return f.TotalCPU }, seconds, ""),
	figure("resident memory of the API server", func(f InClusterFigures) float64 { return float64(f.APIServerRSS) }, mebibytes, ""),
	figure("watches at the API server", func(f InClusterFigures) float64 { return float64(f.WatchConnections) }, count, ""),
	figure("watch events per minute", func(f InClusterFigures) float64 { return f.WatchEventsPerMin }, count, ""),
	one("p50 from write to row, all agents", agentsOnly, func(f InClusterFigures) float64 { return f.P50 }, milliseconds, ""),
	one("p99", agentsOnly, func(f InClusterFigures) float64 { return f.P99 }, milliseconds, ""),
	one("max", agentsOnly, func(f InClusterFigures) float64 { return f.Max }, milliseconds, ""),
	one("p99 since the API server has it", agentsOnly, func(f InClusterFigures) float64 { return f.Beyond.P99 }, milliseconds, ""),
	one("last agent has all, after the last write", agentsOnly, func(f InClusterFigures) float64 { return f.DrainSeconds }, seconds, ""),
	figure("writes", func(f InClusterFigures) float64 { return float64(f.Writes) }, count, ""),
	figure("p99 of how late they were sent", func(f InClusterFigures) float64 { return f.Late.P99 }, milliseconds, ""),
	figure("p50 of requests", func(f InClusterFigures) float64 { return f.Metrics.Requests.P50 * 1000 }, milliseconds, ""),
	figure("p99 of requests", func(f InClusterFigures) float64 { return f.Metrics.Requests.P99 * 1000 }, milliseconds, ""),
	one("delivered", agentsOnly, func(f InClusterFigures) float64 { return float64(f.Delivered) }, count, ""),
	one("of which overtaken", agentsOnly, func(f InClusterFigures) float64 { return float64(f.Overtaken) }, count, ""),
	one("CPU of all agents", agentsOnly, func(f InClusterFigures) float64 { return f.AgentsCPUSeconds }, seconds, ""),
	figure("processors busy", func(f InClusterFigures) float64 { return f.Busy * 100 }, percent, ""),
	one("all agents in sync, from nothing", agentsOnly, func(f InClusterFigures) float64 { return f.SyncSeconds }, seconds, ""),
	one("which cost, without the agents", agentsOnly, func(f InClusterFigures) float64 { return f.SyncCPUSeconds }, seconds, ""),
}

func percent(v float64) string { return fmt.Sprintf("%.0f %%", v) }

// Section is the report as a part of a page.
func (r *InClusterReport) Section() (page.Section, error) {
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
	cpu := page.Plot{X: "seconds since the start", Y: "CPU so far, seconds"}
	memory := page.Plot{X: "seconds since the start", Y: "resident, MiB"}
	for i, mode := range r.Modes() {
		f := r.Median(mode)
		latency.Lines = append(latency.Lines, page.Line{Name: mode, Color: i, Points: quantiles(f.latencies)})
		for _, part := range slices.Sorted(maps.Keys(f.samples)) {
			used := page.Line{Name: mode + ": " + part, Color: i, Dashed: part == apiServerEtcdPart}
			resident := used
			for _, s := range f.samples[part] {
				used.Points = append(used.Points, page.Point{X: s.at.Seconds(), Y: s.cpu.Seconds()})
				resident.Points = append(resident.Points, page.Point{X: s.at.Seconds(), Y: float64(s.resident) / (1 << 20)})
			}
			cpu.Lines, memory.Lines = append(cpu.Lines, used), append(memory.Lines, resident)
		}
	}
	figures, err := draw(
		drawing{"Latency", "From when a write is sent to the API server until the row is in an agent's table, over all agents.", latency},
		drawing{"CPU", "Processor time that each process has used, agents apart.", cpu},
		drawing{"Memory", "Resident memory of each process.", memory})
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Within a cluster: %d agents, %g changes/s", r.Agents, r.Rate), r, figures)
}
