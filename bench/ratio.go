// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import "slices"

// Spread is a value over several rounds.
type Spread struct {
	Min float64 `json:"min"`
	// Median is the larger one of the two in the middle where their number is even.
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	slices.Sort(values)
	return Spread{Min: values[0], Median: values[len(values)/2], Max: values[len(values)-1]}
}
