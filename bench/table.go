// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// line is one figure of a report: a line of its table, and maybe one of the
// ratios of a peer to us.
type line[F any] struct {
	title  string
	of     func(F) float64
	format func(float64) string
	// ratio is the name in JSON of what peers are compared by; empty for figures
	// that aren't.
	ratio string
	// optional: there may be rounds without one, of which of gives absent.
	optional bool
}

// figure is a line that every round has.
func figure[F any](title string, of func(F) float64, format func(float64) string, ratio string) line[F] {
	return line[F]{title: title, of: of, format: format, ratio: ratio}
}

// one is a line of what only some rounds have: those of which of gives nil have
// no part in it.
func one[F, P any](title string, part func(F) *P, of func(P) float64, format func(float64) string, ratio string) line[F] {
	return line[F]{title: title, format: format, ratio: ratio, optional: true, of: func(f F) float64 {
		if p := part(f); p != nil {
			return of(*p)
		}
		return absent
	}}
}

// absent is what a line's value is where there is none. No figure is negative.
const absent = -1

// values are the line's, of those rounds that have one.
func (l line[F]) values(rounds []F) (out []float64) {
	for _, f := range rounds {
		if v := l.of(f); v != absent {
			out = append(out, v)
		}
	}
	return out
}

// rounds are the figures of several subjects, for a report.
type rounds[F any] struct {
	head     *Head
	subjects []string
	// of gives a subject's figures in the order of the rounds.
	of    func(subject string) []F
	lines []line[F]
}

// peers are the subjects but ours.
func (r rounds[F]) peers() []string {
	return slices.DeleteFunc(slices.Clone(r.subjects), func(name string) bool { return name == Waggle })
}

// ratios are the peer's figures divided by ours, by name: of each round the one
// pair that was measured one after the other, so that what else the machine had
// to do then weighs on both.
func (r rounds[F]) ratios(peer string) map[string]Spread {
	ours, theirs := r.of(Waggle), r.of(peer)
	out := map[string]Spread{}
	for _, l := range r.lines {
		var values []float64
		for i := range min(len(ours), len(theirs)) {
			if our, their := l.of(ours[i]), l.of(theirs[i]); our > 0 && their != absent {
				values = append(values, their/our)
			}
		}
		if l.ratio != "" && (len(values) > 0 || !l.optional) {
			out[l.ratio] = spreadOf(values)
		}
	}
	return out
}

// addRatios adds "ratio", the medians of the first peer's, and "ratios", those
// of each with their spread, where there are peers.
func (r rounds[F]) addRatios(out map[string]any) {
	peers := r.peers()
	if len(peers) == 0 {
		return
	}
	ratios, medians := map[string]map[string]Spread{}, map[string]float64{}
	for _, peer := range peers {
		ratios[peer] = r.ratios(peer)
	}
	for name, spread := range ratios[peers[0]] {
		medians[name] = spread.Median
	}
	out["ratio"], out["ratios"] = medians, ratios
}

// write writes a table for each subject, a line for each figure with its
// smallest, median and largest value over the rounds, and one of each peer's
// ratios.
func (r rounds[F]) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, name := range r.subjects {
		writeRounds(table, name+": "+r.head.Allowed[name], r.of(name), r.lines)
	}
	for _, peer := range r.peers() {
		fmt.Fprintf(table, "\n%s ÷ %s\tmin\tmedian\tmax\t\n", peer, Waggle)
		ratios := r.ratios(peer)
		for _, l := range r.lines {
			if s, ok := ratios[l.ratio]; ok {
				fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%.2f\t\n", l.title, s.Min, s.Median, s.Max)
			}
		}
	}
	return table.Flush()
}

// writeRounds writes one table: what it is of, and a line for each figure.
func writeRounds[F any](w io.Writer, title string, all []F, lines []line[F]) {
	fmt.Fprintf(w, "\n%s\n%d rounds\tmin\tmedian\tmax\t\n", title, len(all))
	for _, l := range lines {
		if values := l.values(all); len(values) > 0 {
			s := spreadOf(values)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", l.title, l.format(s.Min), l.format(s.Median), l.format(s.Max))
		}
	}
}

// distinct are the values of all, each once, in the order in which they come.
func distinct[T any](all []T, value func(T) string) (out []string) {
	for _, one := range all {
		if v := value(one); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func seconds(v float64) string      { return fmt.Sprintf("%.3f s", v) }
func milliseconds(v float64) string { return fmt.Sprintf("%.2f ms", v) }
func mebibytes(v float64) string    { return fmt.Sprintf("%.1f MiB", v/(1<<20)) }
func count(v float64) string        { return fmt.Sprintf("%.0f", v) }
func average(v float64) string      { return fmt.Sprintf("%.1f", v) }
