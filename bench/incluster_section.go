// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"

	"github.com/waggle-mesh/waggle/bench/page"
)

// Section is the report as a part of a page.
func (r *InClusterReport) Section() (page.Section, error) {
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
	cpu := page.Plot{X: "seconds since the start", Y: "CPU so far, seconds"}
	memory := page.Plot{X: "seconds since the start", Y: "resident, MiB"}
	for i, mode := range r.Modes() {
		f := r.Median(mode)
		latency.Lines = append(latency.Lines, page.Line{Name: mode, Color: i, Points: quantiles(f.latencies)})
		// An API server and a cache are drawn through, their etcds dashed.
		for n, name := range []string{apiServerPart, apiServerEtcdPart, cachePart, cacheEtcdPart} {
			used := page.Line{Name: mode + ": " + name, Color: i + n/2*len(inClusterModes), Dashed: n%2 == 1}
			resident := used
			for _, s := range f.samples[name] {
				used.Points = append(used.Points, page.Point{X: s.at.Seconds(), Y: s.cpu.Seconds()})
				resident.Points = append(resident.Points, page.Point{X: s.at.Seconds(), Y: float64(s.resident) / (1 << 20)})
			}
			cpu.Lines, memory.Lines = append(cpu.Lines, used), append(memory.Lines, resident)
		}
	}
	spared := page.Plot{X: "wait between commits, milliseconds", Y: "spared of CPU, %"}
	waited := page.Plot{X: "wait between commits, milliseconds", Y: "latency, milliseconds"}
	cost, p50, p99 := page.Line{Name: "cost of distribution"}, page.Line{Name: "p50", Dashed: true}, page.Line{Name: "p99"}
	for _, p := range r.Curve() {
		cost.Points = append(cost.Points, page.Point{X: p.WaitMS, Y: p.DistributionCPU * 100})
		p50.Points = append(p50.Points, page.Point{X: p.WaitMS, Y: p.P50})
		p99.Points = append(p99.Points, page.Point{X: p.WaitMS, Y: p.P99})
	}
	spared.Lines, waited.Lines = []page.Line{cost}, []page.Line{p50, p99}
	figures, err := draw(
		drawing{"CPU", "Processor time that each process has used, agents apart.", cpu},
		drawing{"Memory", "Resident memory of each process.", memory},
		drawing{"Latency", "From when a write is sent to the API server until the row is in an agent's table, over all agents.", latency},
		drawing{"What waiting spares", "Of what distribution costs above the writes alone, in all processes together, agents apart.", spared},
		drawing{"What waiting takes", "The same latency, against the longest wait between two commits of the cache.", waited})
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Within a cluster: %d agents, %g changes/s", r.Agents, r.Rate), r, figures)
}
