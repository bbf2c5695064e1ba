// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"time"

	"github.com/waggle-mesh/waggle/bench/page"
)

// Section is the report as a part of a page.
func (r *ScaleReport) Section() (page.Section, error) {
	whole := r.Whole()
	drawings := r.usage(whole)
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
	color := 0
	for _, phase := range whole.Phases {
		if phase.Endpoints == nil {
			continue
		}
		latency.Lines = append(latency.Lines, page.Line{
			Name: fmt.Sprintf("%g endpoints/s", phase.Endpoints.Rate), Color: color, Points: quantiles(phase.Endpoints.latencies),
		})
		if nodes := phase.Nodes; nodes != nil {
			latency.Lines = append(latency.Lines, page.Line{
				Name: fmt.Sprintf("%g nodes/s beside them", nodes.Rate), Color: color, Dashed: true, Points: quantiles(nodes.latencies),
			})
		}
		color++
	}
	if len(latency.Lines) > 0 {
		drawings = append(drawings, drawing{"Latency", "From when a change is due until the agent's map has it.", latency})
	}
	if len(r.Sizes) > 1 {
		drawings = append(drawings,
			r.growth("Time until ready", "seconds", 1, "ready_seconds", "agent_ready_seconds"),
			r.growth("CPU of the bootstrap", "seconds", 1, "kvstoremesh_cpu_seconds", "etcd_cpu_seconds", "agent_cpu_seconds"),
			r.growth("Peak memory of the bootstrap", "MiB", 1<<20,
				"kvstoremesh_peak_rss_bytes", "etcd_peak_rss_bytes", "agent_peak_rss_bytes", "map_bytes"))
	}
	figures, err := draw(drawings...)
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Scale: %d clusters, %d endpoints", whole.Clusters, r.Mesh.Clusters*r.Mesh.Endpoints), r, figures)
}

// usage plots what the parts use over time.
func (r *ScaleReport) usage(whole *ScaleFigures) []drawing {
	cpu := page.Plot{X: "seconds since the start", Y: "cores"}
	memory := page.Plot{X: "seconds since the start", Y: "resident memory, MiB"}
	for i, part := range scaleParts {
		used, resident := page.Line{Name: part, Color: i}, page.Line{Name: part, Color: i}
		samples, last := whole.samples[part], 0
		for n, s := range samples {
			x := s.at.Seconds()
			resident.Points = append(resident.Points, page.Point{X: x, Y: float64(s.resident) / (1 << 20)})
			if passed := s.at - samples[last].at; passed >= time.Second {
				used.Points = append(used.Points, page.Point{X: x, Y: (s.cpu - samples[last].cpu).Seconds() / passed.Seconds()})
				last = n
			}
		}
		cpu.Lines, memory.Lines = append(cpu.Lines, used), append(memory.Lines, resident)
	}
	when := "Phases begin at"
	for _, phase := range whole.Phases {
		when += fmt.Sprintf(" %.0f s (%s)", phase.at.Seconds(), phase.Name)
	}
	return []drawing{
		{"CPU", "Processor time per second that each process uses. " + when + ".", cpu},
		{"Memory", "Resident memory of each process; that of the map is the kernel's, and comes on top.", memory},
	}
}

// growth plots costs against the number of keys.
func (r *ScaleReport) growth(title, unit string, divisor float64, names ...string) drawing {
	plot := page.Plot{X: "keys", Y: unit}
	for i, name := range names {
		for _, cost := range scaleCosts {
			if cost.name != name {
				continue
			}
			line := page.Line{Name: cost.title, Color: i}
			for n := range r.Sizes {
				line.Points = append(line.Points, page.Point{X: float64(r.Sizes[n].Keys), Y: cost.of(&r.Sizes[n]) / divisor})
			}
			plot.Lines = append(plot.Lines, line)
		}
	}
	return drawing{title, "Against the size of the mesh.", plot}
}
