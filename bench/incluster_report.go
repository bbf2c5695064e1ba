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
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The processes whose cost is compared, as reports name them.
const (
	apiServerPart     = "apiserver"
	apiServerEtcdPart = "apiserver_etcd"
	cachePart         = "cache"
	cacheEtcdPart     = "cache_etcd"
)

// InClusterFigures are what one round has measured of one mode. CPU times are in
// seconds, of Seconds: from the first change that counts until all agents have
// all, and in each mode for at least a second after the last change. Memory is
// what was resident at the end of that time, in bytes. The names as JSON are those
// that operators know, where there are such; a process that counts itself has the
// same as the kernel's accounts, which these are of.
type InClusterFigures struct {
	// CPUSeconds, RSSBytes and PeakRSSBytes are by process.
	CPUSeconds   map[string]float64 `json:"process_cpu_seconds_total"`
	RSSBytes     map[string]int64   `json:"process_resident_memory_bytes"`
	PeakRSSBytes map[string]int64   `json:"peak_rss_bytes"`
	// Requests are the API server's, watches not counted.
	Requests Quantiles `json:"apiserver_request_duration_seconds"`
	// Watches are those that are open at the API server at the end, by resource, and
	// WatchEventsPerMin what it sends to them: those of its own among them.
	Watches           map[string]int     `json:"apiserver_longrunning_requests"`
	WatchEventsPerMin map[string]float64 `json:"apiserver_watch_events_total_per_min"`
	// TerminatedWatches is how many watches the API server ended since their readers
	// were too slow: these list again.
	TerminatedWatches int `json:"apiserver_terminated_watchers_total"`
	// Latency is from when a write is sent to the API server until the row is in the
	// table of an agent, over all writes and all agents, and Beyond since the API
	// server has said that it has it. Without agents there is none.
	Latency `json:"-"`
	Beyond  Latency `json:"since_accepted"`

	Seconds float64 `json:"seconds"`
	// Writes is the number of writes of single objects, and Delivered of them over
	// all agents. Overtaken is how many of these a table never had since the next
	// state of the same object was there as soon.
	Writes    int `json:"writes"`
	Delivered int `json:"delivered"`
	Overtaken int `json:"overtaken"`
	// Late is how long after they were due writes were sent, and Request how long
	// the API server took for each.
	Late    Latency `json:"late"`
	Request Latency `json:"request"`
	// DrainSeconds is how long after the last write was accepted the last agent had
	// it: where it is more than a latency, the mode doesn't keep up.
	DrainSeconds float64 `json:"drain_seconds"`
	// Busy is which part of all processors' time was used, by whomever. Near 1, what
	// is measured is the machine: latencies are those of waiting for a processor.
	Busy float64 `json:"busy"`
	// AgentsCPUSeconds is of all agents together.
	AgentsCPUSeconds float64 `json:"agents_cpu_seconds"`
	// SyncSeconds is how long it took until all agents had all, from nothing, and
	// SyncCPUSeconds what that has cost in TotalCPU's processes.
	SyncSeconds    float64 `json:"sync_seconds"`
	SyncCPUSeconds float64 `json:"sync_cpu_seconds"`

	latencies *hdrhistogram.Snapshot
	samples   map[string][]sample // by process
}

// Quantiles are in seconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// TotalCPU is of all the processes that carry the state to the agents: not of the
// agents, and not of who writes.
func (f *InClusterFigures) TotalCPU() float64 { return sum(f.CPUSeconds) }

// WatchConnections is the number of watches that are open at the API server.
func (f *InClusterFigures) WatchConnections() (n int) {
	for _, open := range f.Watches {
		n += open
	}
	return n
}

// WatchEvents is how many events per minute the API server sends to watches.
func (f *InClusterFigures) WatchEvents() float64 { return sum(f.WatchEventsPerMin) }

// InClusterRound is one measurement of one mode.
type InClusterRound struct {
	Mode string
	// Wait is the longest wait between commits to the cache's etcd.
	Wait time.Duration
	InClusterFigures
}

// InClusterReport is the outcome of InCluster. As JSON there is a field for each
// mode, with the figures of its round of median CPU, "reduction" compares them, and
// "curve" has what the wait between commits makes of the cache.
type InClusterReport struct {
	Head
	// Agents are all of them, and Bare those without tables.
	Agents, Bare, Pods int
	Rate, ServicesRate float64
	// Seconds is how long changes were made.
	Seconds        float64
	EndpointSlices bool
	// Rounds begin with those of the wait that modes are compared with.
	Rounds []InClusterRound
}

// Modes are those that were measured.
func (r *InClusterReport) Modes() []string {
	return distinct(r.Rounds, func(round InClusterRound) string { return round.Mode })
}

// wait is the one that a mode is compared with.
func (r *InClusterReport) wait(mode string) time.Duration {
	for _, round := range r.Rounds {
		if round.Mode == mode {
			return round.Wait
		}
	}
	return 0
}

// of are the figures of one mode with a wait, in the order of the rounds.
func (r *InClusterReport) of(mode string, wait time.Duration) (all []InClusterFigures) {
	for _, round := range r.Rounds {
		if round.Mode == mode && round.Wait == wait {
			all = append(all, round.InClusterFigures)
		}
	}
	return all
}

// Median are the figures of the mode's round of median TotalCPU; it must have one.
func (r *InClusterReport) Median(mode string) InClusterFigures {
	return r.median(mode, r.wait(mode))
}

func (r *InClusterReport) median(mode string, wait time.Duration) InClusterFigures {
	all := r.of(mode, wait)
	slices.SortStableFunc(all, func(a, b InClusterFigures) int { return cmp.Compare(a.TotalCPU(), b.TotalCPU()) })
	return all[len(all)/2]
}

// Reduction compares modes: of a cost, which part of it the cache spares, 1 being
// all.
type Reduction struct {
	// APIServerCPU is spared of CRD's.
	APIServerCPU float64 `json:"apiserver_cpu"`
	// APIServerOverIdle is the cache's part of the API server's CPU divided by what
	// the writes alone cost: it can't get below 1.
	APIServerOverIdle float64 `json:"apiserver_over_idle"`
	// DistributionCPU is spared of what CRD costs above the writes alone, in all
	// processes together.
	DistributionCPU  float64 `json:"distribution_cpu"`
	WatchConnections float64 `json:"watch_connections"`
	WatchEvents      float64 `json:"watch_events"`
}

// Reduction compares the cache with CRD.
func (r *InClusterReport) Reduction() Reduction { return r.reduction(r.wait(Cache)) }

func (r *InClusterReport) reduction(wait time.Duration) Reduction {
	idle, crd, cache := r.Median(Idle), r.Median(CRD), r.median(Cache, wait)
	spared := func(now, before float64) float64 { return 1 - now/before }
	return Reduction{
		APIServerCPU:      spared(cache.CPUSeconds[apiServerPart], crd.CPUSeconds[apiServerPart]),
		APIServerOverIdle: cache.CPUSeconds[apiServerPart] / idle.CPUSeconds[apiServerPart],
		DistributionCPU:   spared(cache.TotalCPU()-idle.TotalCPU(), crd.TotalCPU()-idle.TotalCPU()),
		WatchConnections:  spared(float64(cache.WatchConnections()), float64(crd.WatchConnections())),
		WatchEvents:       spared(cache.WatchEvents(), crd.WatchEvents()),
	}
}

// CurvePoint is what one wait between commits makes of the cache.
type CurvePoint struct {
	WaitMS          float64 `json:"wait_ms"`
	DistributionCPU float64 `json:"distribution_cpu"`
	P50             float64 `json:"p50_ms"`
	P99             float64 `json:"p99_ms"`
	Max             float64 `json:"max_ms"`
	TotalCPU        float64 `json:"total_cpu"`
	CacheCPU        float64 `json:"cache_cpu"`
	CacheEtcdCPU    float64 `json:"cache_etcd_cpu"`
}

// Curve is by the wait, from the shortest on.
func (r *InClusterReport) Curve() (points []CurvePoint) {
	var waits []time.Duration
	for _, round := range r.Rounds {
		if round.Mode == Cache {
			waits = append(waits, round.Wait)
		}
	}
	slices.Sort(waits)
	for _, wait := range slices.Compact(waits) {
		f := r.median(Cache, wait)
		points = append(points, CurvePoint{
			WaitMS: wait.Seconds() * 1000, DistributionCPU: r.reduction(wait).DistributionCPU, P50: f.P50, P99: f.P99, Max: f.Max,
			TotalCPU: f.TotalCPU(), CacheCPU: f.CPUSeconds[cachePart], CacheEtcdCPU: f.CPUSeconds[cacheEtcdPart],
		})
	}
	return points
}

// compared are the figures that modes are compared by, as JSON.
func (f *InClusterFigures) compared(mode string) map[string]any {
	out := map[string]any{
		"apiserver_cpu": f.CPUSeconds[apiServerPart], "apiserver_rss": f.RSSBytes[apiServerPart],
		"apiserver_etcd_cpu": f.CPUSeconds[apiServerEtcdPart],
		"watch_connections":  f.WatchConnections(), "watch_events_per_min": f.WatchEvents(), "total_cpu": f.TotalCPU(),
	}
	if mode != Idle {
		out["p50_ms"], out["p99_ms"], out["max_ms"] = f.P50, f.P99, f.Max
	}
	if mode == Cache {
		out["cache_cpu"], out["cache_rss"] = f.CPUSeconds[cachePart], f.RSSBytes[cachePart]
		out["cache_etcd_cpu"], out["cache_etcd_rss"] = f.CPUSeconds[cacheEtcdPart], f.RSSBytes[cacheEtcdPart]
	}
	return out
}

// inClusterRoundJSON is a round with all that is known of it.
type inClusterRoundJSON struct {
	Mode   string  `json:"mode"`
	WaitMS float64 `json:"wait_ms"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
	Max    float64 `json:"max_ms"`
	InClusterFigures
}

// MarshalJSON gives the report with a field for each mode; "rounds" has all that
// is known of each round.
func (r *InClusterReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	delete(out, "sources")
	delete(out, "allowed")
	out["parameters"] = map[string]any{
		"agents": r.Agents, "bare": r.Bare, "pods": r.Pods, "rate": r.Rate, "services_rate": r.ServicesRate, "seconds": r.Seconds,
		"wait_ms": r.wait(Cache).Seconds() * 1000, "endpoint_slices": r.EndpointSlices, "seed": r.Mesh.Seed,
	}
	for _, mode := range r.Modes() {
		f := r.Median(mode)
		out[mode] = f.compared(mode)
	}
	out["reduction"], out["curve"] = r.Reduction(), r.Curve()
	rounds := make([]inClusterRoundJSON, len(r.Rounds))
	for i, round := range r.Rounds {
		rounds[i] = inClusterRoundJSON{round.Mode, round.Wait.Seconds() * 1000, round.P50, round.P99, round.Max, round.InClusterFigures}
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
	fmt.Fprintf(w, "%s: %d agents (%d of them bare), %d pods as %s, %g changes/s of pods and %g/s of services for %g s, seed %d\n",
		r.Benchmark, r.Agents, r.Bare, r.Pods, objects, r.Rate, r.ServicesRate, r.Seconds, r.Mesh.Seed)
	r.writeMachine(w)
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, mode := range r.Modes() {
		title := mode
		if mode == Cache {
			title = fmt.Sprintf("%s, up to %s between commits", mode, r.wait(mode))
		}
		writeRounds(table, title, r.of(mode, r.wait(mode)), inClusterLines)
	}
	reduction := r.Reduction()
	fmt.Fprintf(table, "\n%s instead of %s\t\t\n", Cache, CRD)
	for _, line := range []struct {
		title string
		value string
	}{
		{"cost of distribution, all processes", percent(-reduction.DistributionCPU * 100)},
		{"CPU of the API server", percent(-reduction.APIServerCPU * 100)},
		{"the same, divided by that of the writes alone", fmt.Sprintf("%.2f", reduction.APIServerOverIdle)},
		{"watches at the API server", percent(-reduction.WatchConnections * 100)},
		{"watch events", fmt.Sprintf("%.2f %%", -reduction.WatchEvents*100)},
	} {
		fmt.Fprintf(table, "%s\t%s\t\n", line.title, line.value)
	}
	fmt.Fprintf(table, "\nwait between commits\tcost of distribution\tp50\tp99\tmax\tCPU of cache\tof its etcd\t\n")
	for _, p := range r.Curve() {
		fmt.Fprintf(table, "%g ms\t%s\t%s\t%s\t%s\t%s\t%s\t\n", p.WaitMS, percent(-p.DistributionCPU*100),
			milliseconds(p.P50), milliseconds(p.P99), milliseconds(p.Max), seconds(p.CacheCPU), seconds(p.CacheEtcdCPU))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, mode := range r.Modes() {
		f := r.Median(mode)
		fmt.Fprintf(w, "\n%s\n  apiserver_longrunning_requests:%s\n  apiserver_watch_events_total per minute:%s\n", mode,
			listed(f.Watches), listed(f.WatchEventsPerMin))
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

// cpuOfPart and residentOf are figures of one process, where there is one.
func cpuOfPart(name string) func(InClusterFigures) float64 {
	return func(f InClusterFigures) float64 {
		if v, ok := f.CPUSeconds[name]; ok {
			return v
		}
		return absent
	}
}

func residentOf(name string) func(InClusterFigures) float64 {
	return func(f InClusterFigures) float64 {
		if v, ok := f.RSSBytes[name]; ok {
			return float64(v)
		}
		return absent
	}
}

// inClusterLines are the figures of InClusterReport.
var inClusterLines = []line[InClusterFigures]{
	figure("CPU of the API server", cpuOfPart(apiServerPart), seconds, ""),
	figure("of its etcd", cpuOfPart(apiServerEtcdPart), seconds, ""),
	figure("of the cache", cpuOfPart(cachePart), seconds, ""),
	figure("of its etcd", cpuOfPart(cacheEtcdPart), seconds, ""),
	figure("all together", func(f InClusterFigures) float64 { return f.TotalCPU() }, seconds, ""),
	figure("resident memory of the API server", residentOf(apiServerPart), mebibytes, ""),
	figure("of its etcd", residentOf(apiServerEtcdPart), mebibytes, ""),
	figure("of the cache", residentOf(cachePart), mebibytes, ""),
	figure("of its etcd", residentOf(cacheEtcdPart), mebibytes, ""),
	figure("watches at the API server", func(f InClusterFigures) float64 { return float64(f.WatchConnections()) }, count, ""),
	figure("watch events per minute", func(f InClusterFigures) float64 { return f.WatchEvents() }, count, ""),
	figure("watches ended for being too slow", func(f InClusterFigures) float64 { return float64(f.TerminatedWatches) }, count, ""),
	one("p50 from write to row, all agents", agentsOnly, func(f InClusterFigures) float64 { return f.P50 }, milliseconds, ""),
	one("p99", agentsOnly, func(f InClusterFigures) float64 { return f.P99 }, milliseconds, ""),
	one("max", agentsOnly, func(f InClusterFigures) float64 { return f.Max }, milliseconds, ""),
	one("p99 since the API server has it", agentsOnly, func(f InClusterFigures) float64 { return f.Beyond.P99 }, milliseconds, ""),
	one("last agent has all, after the last write", agentsOnly, func(f InClusterFigures) float64 { return f.DrainSeconds }, seconds, ""),
	figure("writes", func(f InClusterFigures) float64 { return float64(f.Writes) }, count, ""),
	figure("p99 of how late they were sent", func(f InClusterFigures) float64 { return f.Late.P99 }, milliseconds, ""),
	figure("p50 of requests", func(f InClusterFigures) float64 { return f.Requests.P50 * 1000 }, milliseconds, ""),
	figure("p99 of requests", func(f InClusterFigures) float64 { return f.Requests.P99 * 1000 }, milliseconds, ""),
	one("delivered", agentsOnly, func(f InClusterFigures) float64 { return float64(f.Delivered) }, count, ""),
	one("of which overtaken", agentsOnly, func(f InClusterFigures) float64 { return float64(f.Overtaken) }, count, ""),
	one("CPU of all agents", agentsOnly, func(f InClusterFigures) float64 { return f.AgentsCPUSeconds }, seconds, ""),
	figure("processors busy", func(f InClusterFigures) float64 { return f.Busy * 100 }, percent, ""),
	one("all agents in sync, from nothing", agentsOnly, func(f InClusterFigures) float64 { return f.SyncSeconds }, seconds, ""),
	one("which cost, without the agents", agentsOnly, func(f InClusterFigures) float64 { return f.SyncCPUSeconds }, seconds, ""),
}

func percent(v float64) string { return fmt.Sprintf("%.0f %%", v) }
