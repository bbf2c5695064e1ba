// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bytes"
	"fmt"
	"html/template"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Plot is lines over common axes.
type Plot struct {
	// X and Y name the axes, with their units. A Y of more than 25 letters takes
	// height from the plot.
	X, Y string
	// LogY has a logarithmic Y axis; values must be positive.
	LogY bool
	// Quantiles has an X axis of quantiles, stretched towards 1 as a histogram of
	// latencies wants it: the X of points is QuantileX of a quantile.
	Quantiles bool
	Lines     []Line
}

// Line is one line of a plot.
type Line struct {
	Name string
	// Color numbers the colour: lines of one side have the same.
	Color  int
	Dashed bool
	Points []Point
}

// Point is a point of a line.
type Point struct{ X, Y float64 }

// QuantileX is where a quantile below 1 is on the axis: each further digit 9
// takes as much room as the last.
func QuantileX(q float64) float64 { return -math.Log10(1 - q) }

// Two plots fit beside each other on a page.
const width, height, margin = 13 * vg.Centimeter, 8 * vg.Centimeter, 0.4 * vg.Centimeter

// markedPoints is the most points of a line that are marked as well: measurements,
// and not samples.
const markedPoints = 20

// SVG draws the plot. Lines without points are left out.
func (p Plot) SVG() (template.HTML, error) {
	drawn, err := p.layOut()
	if err != nil {
		return "", err
	}
	return svgOf(drawn, p.Y)
}

// svgOf draws what is laid out.
func svgOf(drawn *plot.Plot, name string) (template.HTML, error) {
	canvas := vgsvg.New(width, height)
	// The last number of the X axis sticks out of the plot.
	drawn.Draw(draw.Crop(draw.New(canvas), 0, -margin, 0, 0))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return "", fmt.Errorf("plotting %q: %w", name, err)
	}
	// What comes before the element belongs into files of their own.
	_, element, _ := bytes.Cut(svg.Bytes(), []byte("<svg"))
	return template.HTML("<svg" + string(element)), nil // names in it were escaped by the canvas
}

// layOut gives axes, lines and legend, to be drawn on any canvas.
func (p Plot) layOut() (*plot.Plot, error) {
	out := plot.New()
	out.X.Label.Text, out.Y.Label.Text = p.X, p.Y
	out.Legend.Top, out.Legend.Left, out.Legend.Padding = true, true, vg.Points(2)
	out.Add(plotter.NewGrid())
	out.X.Tick.Marker, out.Y.Tick.Marker = roundTicks{}, roundTicks{}
	if p.Quantiles {
		out.X.Tick.Marker = quantileTicks{}
	}
	out.X.Min = 0
	if !p.LogY {
		out.Y.Min = 0
	}
	empty := true
	for _, line := range p.Lines {
		if len(line.Points) == 0 {
			continue
		}
		points := make(plotter.XYs, len(line.Points))
		for i, point := range line.Points {
			points[i] = plotter.XY(point)
		}
		drawn, err := plotter.NewLine(points)
		if err != nil {
			return nil, fmt.Errorf("plotting %s: %w", line.Name, err)
		}
		drawn.Color, drawn.Width = plotutil.Color(line.Color), vg.Points(1.3)
		if line.Dashed {
			drawn.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
		}
		out.Add(drawn)
		if len(points) <= markedPoints {
			marks, err := plotter.NewScatter(points)
			if err != nil {
				return nil, fmt.Errorf("plotting %s: %w", line.Name, err)
			}
			marks.GlyphStyle = draw.GlyphStyle{Color: drawn.Color, Radius: vg.Points(2), Shape: draw.CircleGlyph{}}
			out.Add(marks)
		}
		out.Legend.Add(line.Name, drawn)
		empty = false
	}
	if p.LogY && !empty { // without a line the axis has no range to take a logarithm of
		out.Y.Scale, out.Y.Tick.Marker = plot.LogScale{}, powerTicks{}
	}
	// Room for the legend above the lines.
	if p.LogY {
		out.Y.Max *= 8
	} else {
		out.Y.Max *= 1.35
	}
	return out, nil
}

// roundTicks marks four to ten multiples of 1, 2 or 5 times a power of ten.
type roundTicks struct{}

// Ticks implements plot.Ticker.
func (roundTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	step := math.Pow(10, math.Floor(math.Log10(high-low)))
	switch times := (high - low) / step; {
	case times < 2:
		step /= 5
	case times < 5:
		step /= 2
	}
	for n := math.Ceil(low / step); n*step <= high; n++ {
		value := n*step + 0 // for -0
		ticks = append(ticks, plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'g', 6, 64)})
	}
	return ticks
}

// powerTicks marks the powers of ten, and without a number what is between them.
type powerTicks struct{}

// Ticks implements plot.Ticker.
func (powerTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for n := 1.0; n < 10; n++ {
			if v := n * power; v >= low && v <= high {
				tick := plot.Tick{Value: v}
				if n == 1 {
					tick.Label = strconv.FormatFloat(v, 'g', 6, 64)
				}
				ticks = append(ticks, tick)
			}
		}
	}
	return ticks
}

// quantileTicks marks 0, 0.5, 0.9, 0.99, …
type quantileTicks struct{}

// Ticks implements plot.Ticker.
func (quantileTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999} {
		if x := QuantileX(q); x >= low && x <= high {
			ticks = append(ticks, plot.Tick{Value: x, Label: fmt.Sprintf("%g%%", math.Round(q*1e7)/1e5)})
		}
	}
	return ticks
}
