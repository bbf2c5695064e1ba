// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// ScaleFigures are what was measured of one size of a mesh.
type ScaleFigures struct {
	// Clusters counts the consumer's own as well.
	Clusters int `json:"clusters"`
	// Keys is the number of keys that KVStoreMesh has replicated.
	Keys int `json:"keys"`
	// ReadySeconds is the time from the start of KVStoreMesh until the empty local
	// etcd was complete.
	ReadySeconds float64 `json:"ready_seconds"`
	// AgentReadySeconds is the time from the start of the agent, on a complete etcd,
	// until its map was, and AgentReadyCPUSeconds its CPU time until then.
	AgentReadySeconds    float64 `json:"agent_ready_seconds"`
	AgentReadyCPUSeconds float64 `json:"agent_ready_cpu_seconds"`
	// MapEntries and MapBytes are of the agent's map when it was complete. Its
	// memory is the kernel's, and in no process's account.
	MapEntries  int   `json:"map_entries"`
	MapCapacity int   `json:"map_capacity"`
	MapBytes    int64 `json:"map_bytes"`
	// Phases are in the order in which they were measured: replicate (KVStoreMesh
	// fills the etcd), agent (an agent takes that in, and a second or more in which
	// it is looked whether it has), and of the whole mesh idle, and churn-R for each
	// rate R.
	Phases []*ScalePhase `json:"phases"`

	samples map[string][]sample
}

// ScalePhase is what was used while something was done.
type ScalePhase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	// Parts are kvstoremesh, etcd and agent, as far as they were there.
	Parts map[string]PartFigures `json:"parts"`
	// SourceCPUSeconds is the CPU time of all source etcds.
	SourceCPUSeconds float64 `json:"source_cpu_seconds"`
	// Endpoints and Nodes are of a churn phase.
	Endpoints *ChangeFigures `json:"endpoints,omitempty"`
	Nodes     *ChangeFigures `json:"nodes,omitempty"`
	// WatchEvents is how many events etcds have sent to watchers, by etcd, where that
	// is asked for.
	WatchEvents map[string]int `json:"watch_events,omitempty"`

	began time.Time
	at    time.Duration // since the first phase of the size began
}

// PartFigures are what one process has used in a phase.
type PartFigures struct {
	CPUSeconds float64 `json:"cpu_seconds"`
	// Cores is CPU time per second, and CoresMax that of the busiest second.
	Cores    float64 `json:"cores"`
	CoresMax float64 `json:"cores_max"`
	// PeakRSSBytes is VmHWM of this phase alone; what the process had before
	// counts as far as it still has it.
	PeakRSSBytes int64 `json:"peak_rss_bytes"`
	EndRSSBytes  int64 `json:"end_rss_bytes"`
	EndAnonBytes int64 `json:"end_anon_bytes"`
}

// ChangeFigures are of the changes of one kind in a phase.
type ChangeFigures struct {
	// Latency is from when a change was due until it was seen in the agent's map.
	Latency
	// Rate is the number of changes per second over all clusters.
	Rate float64 `json:"rate"`
	// Sent is the number of changes, and Delivered of those that had reached the map
	// in the end; of these Overtaken were never seen there, since the next state of
	// the same object came first.
	Sent      int `json:"sent"`
	Delivered int `json:"delivered"`
	Overtaken int `json:"overtaken"`
	// QueueEnd is how many changes weren't in the map when the last one was sent,
	// and QueueMax the most at any time.
	QueueEnd int `json:"queue_end"`
	QueueMax int `json:"queue_max"`

	latencies *hdrhistogram.Snapshot
}

// changeFiguresOf makes them of the ledger when the last change was sent, and at
// the end.
func changeFiguresOf(rate float64, sent, end tally) *ChangeFigures {
	return &ChangeFigures{
		Latency: latencyOf(end.latencies), Rate: rate,
		Sent: end.sent, Delivered: end.arrived, Overtaken: end.arrived - end.seen,
		QueueEnd: sent.sent - sent.arrived, QueueMax: sent.longest, latencies: end.latencies,
	}
}

// ScaleReport is the outcome of Scale.
type ScaleReport struct {
	Head
	// Sizes are those of the growth, and at last the whole mesh.
	Sizes []ScaleFigures
}

// Whole are the figures of the whole mesh.
func (r *ScaleReport) Whole() *ScaleFigures { return &r.Sizes[len(r.Sizes)-1] }

// part gives the figures of a part in a phase; false if it wasn't there.
func (f *ScaleFigures) part(phase, part string) (PartFigures, bool) {
	return partIn(f.Phases, phase, part)
}

func partIn(phases []*ScalePhase, phase, part string) (PartFigures, bool) {
	for _, p := range phases {
		if p.Name == phase {
			figures, ok := p.Parts[part]
			return figures, ok
		}
	}
	return PartFigures{}, false
}

// scaleCosts are what is set against the number of keys. CPU of the etcd is for
// taking in what KVStoreMesh writes and for giving it to one agent.
var scaleCosts = []struct {
	name, title, unit string
	scale             float64 // of the unit in which it is shown per key
	of                func(*ScaleFigures) float64
}{
	{"ready_seconds", "KVStoreMesh ready", "µs", 1e6, func(f *ScaleFigures) float64 { return f.ReadySeconds }},
	{"agent_ready_seconds", "agent's map ready", "µs", 1e6, func(f *ScaleFigures) float64 { return f.AgentReadySeconds }},
	{"kvstoremesh_cpu_seconds", "CPU of KVStoreMesh", "µs", 1e6, func(f *ScaleFigures) float64 {
		p, _ := f.part(phaseReplicate, partKVStoreMesh)
		return p.CPUSeconds
	}},
	{"etcd_cpu_seconds", "CPU of the etcd", "µs", 1e6, func(f *ScaleFigures) float64 {
		filling, _ := f.part(phaseReplicate, partEtcd)
		giving, _ := f.part(phaseAgent, partEtcd)
		return filling.CPUSeconds + giving.CPUSeconds
	}},
	{"agent_cpu_seconds", "CPU of the agent", "µs", 1e6, func(f *ScaleFigures) float64 { return f.AgentReadyCPUSeconds }},
	{"kvstoremesh_peak_rss_bytes", "peak RSS of KVStoreMesh", "B", 1, func(f *ScaleFigures) float64 { return float64(f.peak(partKVStoreMesh)) }},
	{"etcd_peak_rss_bytes", "peak RSS of the etcd", "B", 1, func(f *ScaleFigures) float64 { return float64(f.peak(partEtcd)) }},
	{"agent_peak_rss_bytes", "peak RSS of the agent", "B", 1, func(f *ScaleFigures) float64 { return float64(f.peak(partAgent)) }},
	{"map_bytes", "the agent's map", "B", 1, func(f *ScaleFigures) float64 { return float64(f.MapBytes) }},
}

// peak is the peak of a part's memory during the bootstrap.
func (f *ScaleFigures) peak(part string) int64 {
	replicate, _ := f.part(phaseReplicate, part)
	agent, _ := f.part(phaseAgent, part)
	return max(replicate.PeakRSSBytes, agent.PeakRSSBytes)
}

// Growth says how each cost of the bootstrap grows with the number of keys, by the
// name of the cost: *_seconds, *_cpu_seconds and *_bytes. It is empty where only one
// size was measured.
func (r *ScaleReport) Growth() map[string]Growth {
	out := map[string]Growth{}
	if len(r.Sizes) < 2 {
		return out
	}
	for _, cost := range scaleCosts {
		var keys, costs []float64
		for i := range r.Sizes {
			keys, costs = append(keys, float64(r.Sizes[i].Keys)), append(costs, cost.of(&r.Sizes[i]))
		}
		out[cost.name] = growthOf(keys, costs)
	}
	return out
}

// Idle is what a part takes while nothing changes, for each of the clusters: CPU
// seconds per second. ok is false where that wasn't measured.
func (r *ScaleReport) Idle(part string) (perCluster float64, ok bool) {
	f, ok := r.Whole().part(phaseIdle, part)
	return f.Cores / float64(r.Whole().Clusters), ok
}

// MarshalJSON gives the whole mesh as the field "waggle".
func (r *ScaleReport) MarshalJSON() ([]byte, error) {
	out := r.fields()
	idle := map[string]float64{}
	for _, part := range scaleParts {
		if perCluster, ok := r.Idle(part); ok {
			idle[part] = perCluster
		}
	}
	out[Waggle], out["sizes"], out["growth"], out["idle_cores_per_cluster"] = r.Whole(), r.Sizes, r.Growth(), idle
	return json.Marshal(out)
}

// WriteText writes the report for a reader.
func (r *ScaleReport) WriteText(w io.Writer) error {
	r.writeText(w)
	whole := r.Whole()
	fmt.Fprintf(w, "%s: %s\n\n", Waggle, r.Allowed[Waggle])
	fmt.Fprintf(w, "%d clusters with the consumer's own, %d nodes and %d endpoints\n",
		whole.Clusters, r.Mesh.Clusters*r.Mesh.Nodes, r.Mesh.Clusters*r.Mesh.Endpoints)
	fmt.Fprintf(w, "KVStoreMesh ready after %s, then an agent's map after %s\n", seconds(whole.ReadySeconds), seconds(whole.AgentReadySeconds))
	fmt.Fprintf(w, "the map: %d entries of %d, %s of the kernel's memory\n", whole.MapEntries, whole.MapCapacity, mebibytes(float64(whole.MapBytes)))
	r.writePhases(w, whole)
	r.writeLatencies(w, whole)
	for _, part := range scaleParts {
		if perCluster, ok := r.Idle(part); ok {
			fmt.Fprintf(w, "idle, for each cluster: %.0f µs of CPU per second in %s\n", perCluster*1e6, part)
		}
	}
	r.writePublished(w, whole)
	return r.writeGrowth(w)
}

func (r *ScaleReport) writePhases(w io.Writer, whole *ScaleFigures) {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "\nphase\tpart\tseconds\tCPU\tcores\tbusiest second\tpeak RSS\tRSS at the end\tof it anonymous\t\n")
	for _, phase := range whole.Phases {
		for _, part := range scaleParts {
			f, ok := phase.Parts[part]
			if !ok {
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%.1f\t%s\t%.3f\t%.2f\t%s\t%s\t%s\t\n", phase.Name, part, phase.Seconds, seconds(f.CPUSeconds), f.Cores, f.CoresMax,
				mebibytes(float64(f.PeakRSSBytes)), mebibytes(float64(f.EndRSSBytes)), mebibytes(float64(f.EndAnonBytes)))
		}
		fmt.Fprintf(table, "%s\tsources\t%.1f\t%s\t%.3f\t\t\t\t\t\n", phase.Name, phase.Seconds, seconds(phase.SourceCPUSeconds), phase.SourceCPUSeconds/phase.Seconds)
	}
	_ = table.Flush() // whatever writes the last part finds the error
}

func (r *ScaleReport) writeLatencies(w io.Writer, whole *ScaleFigures) {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "\nfrom source to map\t\tp50\tp90\tp99\tmax\tsent\tdelivered\tovertaken\tqueue at the end\tlongest\t\n")
	for _, phase := range whole.Phases {
		for _, of := range []struct {
			name    string
			figures *ChangeFigures
		}{{"endpoints", phase.Endpoints}, {"nodes", phase.Nodes}} {
			if f := of.figures; f != nil {
				fmt.Fprintf(table, "%s\t%g %s/s\t%.2f ms\t%.2f ms\t%.2f ms\t%.2f ms\t%d\t%d\t%d\t%d\t%d\t\n", phase.Name, f.Rate, of.name,
					f.P50, f.P90, f.P99, f.Max, f.Sent, f.Delivered, f.Overtaken, f.QueueEnd, f.QueueMax)
			}
		}
	}
	fmt.Fprintln(table)
	_ = table.Flush()
}

// The published result to compare with: the etcd of a mesh of 255 clusters, 50,000
// nodes and 500,000 endpoints, in steady state.
const (
	publishedClusters = 255
	publishedCores    = 1
	publishedBytes    = 512 << 20
)

func (r *ScaleReport) writePublished(w io.Writer, whole *ScaleFigures) {
	var steady, bootstrap PartFigures
	for _, phase := range whole.Phases {
		f, ok := phase.Parts[partEtcd]
		into := &steady
		if phase.Name == phaseReplicate || phase.Name == phaseAgent {
			into = &bootstrap
		}
		if ok {
			into.CoresMax, into.PeakRSSBytes = max(into.CoresMax, f.CoresMax), max(into.PeakRSSBytes, f.PeakRSSBytes)
		}
	}
	fmt.Fprintf(w, "\nthe etcd: at most %.2f cores and %s after the bootstrap, %.2f cores and %s during it (published, for %d clusters: under %d core and %s)\n",
		steady.CoresMax, mebibytes(float64(steady.PeakRSSBytes)), bootstrap.CoresMax, mebibytes(float64(bootstrap.PeakRSSBytes)),
		publishedClusters, publishedCores, mebibytes(publishedBytes))
}

func (r *ScaleReport) writeGrowth(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "\nper key, by clusters\t")
	for _, size := range r.Sizes {
		fmt.Fprintf(table, "%d\t", size.Clusters)
	}
	fmt.Fprint(table, "line: fixed\tper key\tfarthest\t\nkeys\t")
	for _, size := range r.Sizes {
		fmt.Fprintf(table, "%d\t", size.Keys)
	}
	fmt.Fprint(table, "\t\t\t\n")
	growth := r.Growth()
	for _, cost := range scaleCosts {
		fmt.Fprintf(table, "%s\t", cost.title)
		for i := range r.Sizes {
			fmt.Fprintf(table, "%.2f %s\t", cost.of(&r.Sizes[i])*cost.scale/float64(r.Sizes[i].Keys), cost.unit)
		}
		line, ok := growth[cost.name]
		if !ok {
			fmt.Fprint(table, "\t\t\t\n")
			continue
		}
		fixed := seconds(line.Fixed)
		if cost.unit == "B" {
			fixed = mebibytes(line.Fixed)
		}
		fmt.Fprintf(table, "%s\t%.2f %s\t%.0f %%\t\n", fixed, line.PerKey*cost.scale, cost.unit, line.Deviation*100)
	}
	return table.Flush()
}
