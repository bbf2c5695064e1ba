// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import "math"

// Growth says how a cost grows with the number of keys: the straight line that is
// nearest to what was measured at several sizes, by least squares of the relative
// distance, so that small sizes count as large ones do.
type Growth struct {
	// Fixed is what the line has at no keys, and PerKey its slope; in the unit of
	// what was measured.
	Fixed  float64 `json:"fixed"`
	PerKey float64 `json:"per_key"`
	// Deviation is how far from the line the measurement is that is farthest, as a
	// part of its own value: 0.1 is 10 %.
	Deviation float64 `json:"deviation"`
}

// growthOf needs positive costs at two sizes at least, else it is all zero.
func growthOf(keys, costs []float64) Growth {
	var weight, x, y, xx, xy float64
	for i, cost := range costs {
		if cost <= 0 {
			return Growth{}
		}
		w := 1 / (cost * cost)
		weight += w
		x, y = x+w*keys[i], y+w*cost
		xx, xy = xx+w*keys[i]*keys[i], xy+w*keys[i]*cost
	}
	spread := weight*xx - x*x
	if len(costs) < 2 || spread <= 0 {
		return Growth{}
	}
	g := Growth{PerKey: (weight*xy - x*y) / spread}
	g.Fixed = (y - g.PerKey*x) / weight
	for i, cost := range costs {
		g.Deviation = max(g.Deviation, math.Abs(g.Fixed+g.PerKey*keys[i]-cost)/cost)
	}
	return g
}
