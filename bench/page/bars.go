// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"html/template"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Bars are bars beside each other, each of parts that stand on each other.
type Bars struct {
	// Y names the axis, with its unit.
	Y string
	// Labels are those of the bars.
	Labels []string
	// Stacks are the parts, from the lowest on.
	Stacks []Stack
}

// Stack is one part of all bars: a value, not negative, for each of them.
type Stack struct {
	Name   string
	Values []float64
}

// slantedLabels is the number of bars from which their labels are slanted, so that
// they don't run into each other.
const slantedLabels = 4

// SVG draws the bars. Parts without any value above 0 are left out.
func (b Bars) SVG() (template.HTML, error) {
	out := plot.New()
	out.Y.Label.Text, out.Y.Min, out.Y.Tick.Marker = b.Y, 0, roundTicks{}
	out.Legend.Top, out.Legend.Padding = true, vg.Points(2)
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	out.Add(grid)
	var below *plotter.BarChart
	for i, stack := range b.Stacks {
		highest := 0.0
		for _, v := range stack.Values {
			highest = max(highest, v)
		}
		if highest == 0 {
			continue
		}
		bars, err := plotter.NewBarChart(plotter.Values(stack.Values), width/vg.Length(3*max(1, len(b.Labels))))
		if err != nil {
			return "", fmt.Errorf("plotting %s: %w", stack.Name, err)
		}
		bars.Color, bars.LineStyle.Width = plotutil.Color(i), 0
		if below != nil {
			bars.StackOn(below)
		}
		below = bars
		out.Add(bars)
		out.Legend.Add(stack.Name, bars)
	}
	out.NominalX(b.Labels...)
	if len(b.Labels) >= slantedLabels {
		out.X.Tick.Label.Rotation = math.Pi / 9
		out.X.Tick.Label.XAlign, out.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
	}
	out.X.Min, out.X.Max = -0.5, max(0, float64(len(b.Labels))-0.5)
	if out.Y.Max <= 0 || math.IsInf(out.Y.Max, 0) {
		out.Y.Max = 1
	}
	out.Y.Max *= 1.35 // room for the legend above the bars
	return svgOf(out, b.Y)
}
