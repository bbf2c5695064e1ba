// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
	"pgregory.net/rapid"
)

func TestSVG(t *testing.T) {
	for name, p := range map[string]Plot{
		"usual": {X: "time", Y: "CPU", Lines: []Line{
			{Name: "waggle <&>", Points: []Point{{0, 0}, {1, 2}}}, {Name: "peer", Color: 1, Dashed: true, Points: []Point{{0, 1}, {3, 1}}},
			{Name: "nothing"},
		}},
		"quantiles": {X: "quantile", Y: "ms", LogY: true, Quantiles: true, Lines: []Line{
			{Name: "waggle", Points: []Point{{QuantileX(0), 0.5}, {QuantileX(0.99), 40}}},
		}},
		"one point": {Lines: []Line{{Name: "waggle", Points: []Point{{1, 1}}}}},
		"flat":      {LogY: true, Lines: []Line{{Name: "waggle", Points: []Point{{1, 1}, {2, 1}}}}},
		"empty":     {LogY: true},
	} {
		t.Run(name, func(t *testing.T) {
			svg, err := p.SVG()
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(svg), "<svg"))
			require.NotContains(t, string(svg), "NaN")
			decoder := xml.NewDecoder(strings.NewReader(string(svg)))
			for {
				_, err := decoder.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
			}
		})
	}
}

func TestQuantileX(t *testing.T) {
	require.InDelta(t, 0, QuantileX(0), 1e-9)
	require.InDelta(t, 2, QuantileX(0.99), 1e-9)
	require.InDelta(t, 3, QuantileX(0.999), 1e-9)
}

func TestWrite(t *testing.T) {
	svg, err := Plot{Y: "CPU"}.SVG()
	require.NoError(t, err)
	var out strings.Builder
	require.NoError(t, Write(&out, "Bees & more", []Section{{
		Title: "kvstoremesh", Text: "1 < 2", Figures: []Figure{{Title: "CPU", Note: "lower is better", SVG: svg}},
	}}))
	for _, want := range []string{"Bees &amp; more", "1 &lt; 2", string(svg), "lower is better"} {
		require.Contains(t, out.String(), want)
	}
	for _, outside := range []string{"<script", "<link", "src="} {
		require.NotContains(t, out.String(), outside)
	}
}

func TestTicks(t *testing.T) {
	labels := func(ticks []plot.Tick) (all []string) {
		for _, tick := range ticks {
			if tick.Label != "" {
				all = append(all, tick.Label)
			}
		}
		return all
	}
	require.Equal(t, []string{"0", "50", "100", "150", "200", "250"}, labels(roundTicks{}.Ticks(0, 270)))
	require.Equal(t, []string{"0", "0.2", "0.4", "0.6", "0.8", "1"}, labels(roundTicks{}.Ticks(0, 1.1)))
	require.Equal(t, []string{"1", "10", "100"}, labels(powerTicks{}.Ticks(0.5, 200)))
	require.Equal(t, []string{"0%", "50%", "90%", "99%", "99.9%"}, labels(quantileTicks{}.Ticks(0, 3.5)))
	for _, marks := range []plot.Ticker{roundTicks{}, powerTicks{}} {
		rapid.Check(t, func(t *rapid.T) {
			low := rapid.Float64Range(1e-3, 1e6).Draw(t, "low")
			high := low * rapid.Float64Range(1.01, 1e3).Draw(t, "times")
			ticks := marks.Ticks(low, high)
			require.Less(t, len(ticks), 60)
			for _, tick := range ticks {
				require.GreaterOrEqual(t, tick.Value, low*0.999999)
				require.LessOrEqual(t, tick.Value, high*1.000001)
			}
		})
	}
}

func TestBars(t *testing.T) {
	for name, bars := range map[string]Bars{
		"usual": {Y: "keys", Labels: []string{"off", "on"}, Stacks: []Stack{
			{Name: "nodes <&>", Values: []float64{10, 10}}, {Name: "nothing", Values: []float64{0, 0}}, {Name: "endpoints", Values: []float64{200, 4}},
		}},
		"many":  {Labels: []string{"a", "b", "c", "d", "e"}, Stacks: []Stack{{Name: "x", Values: []float64{1, 2, 3, 4, 5}}}},
		"empty": {Labels: []string{"off"}},
	} {
		t.Run(name, func(t *testing.T) {
			svg, err := bars.SVG()
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(svg), "<svg"))
			require.NotContains(t, string(svg), "NaN")
			require.NotContains(t, string(svg), "nothing")
		})
	}
}
