// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/waggle-mesh/waggle/bench/page"
)

// side is one subject's part of a plot of what processes use.
type side struct {
	name string
	// own are the samples of the subject, etcd of the etcd beside it.
	own, etcd []sample
}

// usage plots CPU and memory over time of all sides on the same axes.
func usage(sides []side) ([]page.Figure, error) {
	cpu := page.Plot{X: "seconds since the start", Y: "CPU used so far, seconds"}
	memory := page.Plot{X: "seconds since the start", Y: "resident memory, MiB"}
	for i, s := range sides {
		for _, of := range []struct {
			name    string
			samples []sample
			dashed  bool
		}{{s.name, s.own, false}, {s.name + ": etcd", s.etcd, true}} {
			used, resident := page.Line{Name: of.name, Color: i, Dashed: of.dashed}, page.Line{Name: of.name, Color: i, Dashed: of.dashed}
			for _, sample := range of.samples {
				x := sample.at.Seconds()
				used.Points = append(used.Points, page.Point{X: x, Y: sample.cpu.Seconds()})
				resident.Points = append(resident.Points, page.Point{X: x, Y: float64(sample.resident) / (1 << 20)})
			}
			cpu.Lines, memory.Lines = append(cpu.Lines, used), append(memory.Lines, resident)
		}
	}
	return draw(
		drawing{"CPU", "Processor time that each process has used; a line ends where its round does.", cpu},
		drawing{"Memory", "Resident memory of each process.", memory})
}

// drawing is a plot that is to be drawn.
type drawing struct {
	title, note string
	plot        interface{ SVG() (template.HTML, error) }
}

func draw(all ...drawing) ([]page.Figure, error) {
	var figures []page.Figure
	for _, d := range all {
		svg, err := d.plot.SVG()
		if err != nil {
			return nil, err
		}
		figures = append(figures, page.Figure{Title: d.title, Note: d.note, SVG: svg})
	}
	return figures, nil
}

// textReport is what a report's section quotes.
type textReport interface{ WriteText(io.Writer) error }

func section(title string, report textReport, figures []page.Figure) (page.Section, error) {
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		return page.Section{}, fmt.Errorf("writing %s: %w", title, err)
	}
	return page.Section{Title: title, Text: text.String(), Figures: figures}, nil
}

// Section is the report as a part of a page.
func (r *Report) Section() (page.Section, error) {
	var sides []side
	for _, name := range r.Subjects() {
		f := r.Median(name)
		sides = append(sides, side{name, f.samples, f.etcdSamples})
	}
	figures, err := usage(sides)
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("KVStoreMesh: %d clusters, %d keys", r.Mesh.Clusters, r.Mesh.Keys()), r, figures)
}

// Section is the report as a part of a page.
func (r *ChurnReport) Section() (page.Section, error) {
	latency := page.Plot{X: "quantile", Y: "latency, milliseconds", LogY: true, Quantiles: true}
	var sides []side
	for i, name := range r.Subjects() {
		f := r.Median(name)
		latency.Lines = append(latency.Lines,
			page.Line{Name: name, Color: i, Points: quantiles(f.agent)},
			page.Line{Name: name + ": local etcd", Color: i, Dashed: true, Points: quantiles(f.cache)})
		sides = append(sides, side{name, f.samples, f.etcdSamples})
	}
	figures, err := draw(drawing{"Latency", "From when a change is due until the agent's table has it, and, dashed, until the local etcd has it.", latency})
	if err != nil {
		return page.Section{}, err
	}
	more, err := usage(sides)
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Churn: %g events/s, %d clusters", r.Rate, r.Mesh.Clusters), r, append(figures, more...))
}

// quantiles are the points of a histogram of microseconds, in milliseconds.
func quantiles(snapshot *hdrhistogram.Snapshot) (points []page.Point) {
	if snapshot == nil {
		return nil
	}
	h := hdrhistogram.Import(snapshot)
	for _, bracket := range h.CumulativeDistributionWithTicks(5) {
		if q := bracket.Quantile / 100; q < 1 && bracket.ValueAt > 0 {
			points = append(points, page.Point{
				X: page.QuantileX(q), Y: (time.Duration(bracket.ValueAt) * time.Microsecond).Seconds() * 1000,
			})
		}
	}
	return points
}

// Section is the report as a part of a page.
func (r *IngestReport) Section() (page.Section, error) {
	var sides []side
	for _, name := range r.Subjects() {
		f := r.Median(name)
		sides = append(sides, side{name, f.samples, f.etcdSamples})
	}
	figures, err := usage(sides)
	if err != nil {
		return page.Section{}, err
	}
	return section(fmt.Sprintf("Ingest: %d endpoints", r.Mesh.Clusters*r.Mesh.Endpoints), r, figures)
}
