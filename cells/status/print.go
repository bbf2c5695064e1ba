// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Print writes the report as text; now is what ages are counted from.
func (r *Report) Print(w io.Writer, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	health := "OK"
	if !r.Healthy {
		health = fmt.Sprintf("not OK (%d), see below", len(r.Problems))
	}
	fmt.Fprintf(table, "Health:\t%s\n", health)
	if r.Cluster != "" {
		fmt.Fprintf(table, "Cluster:\t%s\n", r.Cluster)
	}
	r.printParts(table)
	if err := table.Flush(); err != nil {
		return err
	}
	if err := r.printSources(w, now); err != nil {
		return err
	}
	if err := r.printExports(w); err != nil {
		return err
	}
	return r.PrintProblems(w, now)
}

// printParts writes what takes a line each.
func (r *Report) printParts(w io.Writer) {
	if e := r.Etcd; e != nil {
		fmt.Fprintf(w, "Etcd:\t%d keys on %d leases, %d of %d prefixes complete\n",
			e.Keys, e.Leases, e.Prefixes-e.Incomplete, e.Prefixes)
		fmt.Fprintf(w, "Queue:\t%d, %d of them refused, %s behind\n", e.Queue, e.Refused, Seconds(e.LagSeconds))
		fmt.Fprintf(w, "Commits:\t%d of %d changes, %d failed\n", e.Commits, e.Changes, e.Failures)
	}
	if l := r.Lists; l != nil {
		fmt.Fprintf(w, "Lists:\t%d now, %d served, %d put off\n", l.Open, l.Served, l.Postponed)
	}
	if m := r.IPCache; m != nil {
		fmt.Fprintf(w, "Map:\t%s, %d of %d entries wanted, %d don't fit, %d failed\n", m.Map, m.Wanted, m.Capacity, m.Overflow, m.Failed)
	}
	switch o := r.OnDemand; {
	case o == nil:
	case !o.Enabled:
		fmt.Fprintf(w, "On demand:\toff\n")
	default:
		fmt.Fprintf(w, "On demand:\t%s, %d wait\n", o.Resolved(), o.Waiting)
	}
}

// Resolved is how much lookups have brought, by kind.
func (o *OnDemand) Resolved() string {
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(o.Entries)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", o.Entries[kind], kind))
	}
	return cmp.Or(strings.Join(kinds, ", "), "nothing")
}

// printSources writes the datastore and the remote clusters.
func (r *Report) printSources(w io.Writer, now time.Time) error {
	if r.Datastore == nil && len(r.Clusters) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SOURCE\tSTATE\tSYNCED\tNODES\tIDENTITIES\tENDPOINTS\tSERVICES\tLAST DATA\tREFUSED\tPROBLEM")
	if d := r.Datastore; d != nil {
		name := fmt.Sprintf("own (%s)", d.Kind)
		if d.Backend != "" {
			name = fmt.Sprintf("own (%s, %s)", d.Kind, d.Backend)
		}
		d.print(table, name, now)
	}
	for i := range r.Clusters {
		r.Clusters[i].print(table, r.Clusters[i].Name, now)
	}
	return table.Flush()
}

func (s *Source) print(w io.Writer, name string, now time.Time) {
	state := "connected"
	if !s.Connected {
		state = "away"
	}
	if s.Since != nil {
		state += " for " + age(*s.Since, now)
	}
	fmt.Fprintf(w, "%s\t%s\t%s", name, state, yes(s.Synced))
	for _, resource := range []wire.Resource{wire.Nodes, wire.Identities, wire.Endpoints, wire.Services} {
		text := "-" // it isn't read of this source
		if of, read := s.Resources[resource]; read {
			text = of.String()
		}
		fmt.Fprintf(w, "\t%s", text)
	}
	last := "-"
	if s.LastEvent != nil {
		last = age(*s.LastEvent, now) + " ago"
	}
	refused := uint64(0)
	for _, n := range s.Refused {
		refused += n
	}
	fmt.Fprintf(w, "\t%s\t%d\t%s\n", last, refused, cmp.Or(printable(s.Problem), "-"))
}

// String is the number of entries, with a "+" while there may be more.
func (r Resource) String() string {
	text := fmt.Sprint(r.Entries)
	if !r.Synced {
		text += "+"
	}
	return text
}

func (r *Report) printExports(w io.Writer) error {
	if len(r.Exports) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "EXPORT\tSYNCED\tPUSHED\tON DEMAND\tNOT GLOBAL\tREFUSED")
	for _, e := range r.Exports {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\n", e.Resource, yes(e.Synced), e.Pushed, e.OnDemand, e.NotGlobal, e.Refused)
	}
	return table.Flush()
}

// PrintProblems writes what isn't well and why, or nothing.
func (r *Report) PrintProblems(w io.Writer, now time.Time) error {
	if len(r.Problems) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PROBLEM OF\tFOR\tREASON")
	for _, p := range r.Problems {
		since := "-"
		if p.Since != nil {
			since = age(*p.Since, now)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", p.Subject, since, printable(p.Reason))
	}
	return table.Flush()
}

// printable is a text on one line without what a terminal would take for a command: it
// may come from another cluster.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

func age(since, now time.Time) string { return now.Sub(since).Round(time.Second).String() }

// Seconds is a number of seconds as text.
func Seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
