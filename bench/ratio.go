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

// ratioOf are the figures that peers are compared by: the names in JSON, and
// titles for readers.
var ratioOf = []struct {
	name, title string
	of          func(Figures) float64
}{
	{"ready", "ready", func(f Figures) float64 { return f.ReadySeconds }},
	{"cpu", "CPU until ready", func(f Figures) float64 { return f.CPUSeconds }},
	{"etcd_cpu", "CPU of the local etcd", func(f Figures) float64 { return f.EtcdCPUSeconds }},
	{"source_cpu", "CPU of the source etcds", func(f Figures) float64 { return f.SourceCPUSeconds }},
	{"rss", "peak RSS", func(f Figures) float64 { return float64(f.PeakRSSBytes) }},
	{"anon", "anonymous, when ready", func(f Figures) float64 { return float64(f.AnonRSSBytes) }},
}

// peers are the subjects but ours.
func (r *Report) peers() []string {
	return slices.DeleteFunc(r.Subjects(), func(name string) bool { return name == Waggle })
}

// Ratios are the peer's figures divided by ours, by name: of each round the one
// pair that was measured one after the other, so that what else the machine had
// to do then weighs on both.
func (r *Report) Ratios(peer string) map[string]Spread {
	inOrder := func(subject string) (out []Figures) {
		for _, round := range r.Rounds {
			if round.Subject == subject {
				out = append(out, round.Figures)
			}
		}
		return out
	}
	ours, theirs := inOrder(Waggle), inOrder(peer)
	out := map[string]Spread{}
	for _, ratio := range ratioOf {
		var values []float64
		for i := range min(len(ours), len(theirs)) {
			if our := ratio.of(ours[i]); our > 0 {
				values = append(values, ratio.of(theirs[i])/our)
			}
		}
		out[ratio.name] = spreadOf(values)
	}
	return out
}
