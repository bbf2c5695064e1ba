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
	"time"
	"unicode"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Print writes the report as text; now is what ages are counted from.
func (r *Report) Print(w io.Writer, now time.Time) error {
	table := output.NewTable(w)
	health := "OK"
	if !r.Healthy {
		health = fmt.Sprintf("not OK (%d), see below", len(r.Problems))
	}
	table.Row("Health:", health)
	if r.Cluster != "" {
		table.Row("Cluster:", r.Cluster)
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
func (r *Report) printParts(table *output.Table) {
	line := func(part, format string, of ...any) { table.Row(part+":", fmt.Sprintf(format, of...)) }
	if e := r.Etcd; e != nil {
		line("Etcd", "%d keys on %d leases, %d of %d prefixes complete", e.Keys, e.Leases, e.Prefixes-e.Incomplete, e.Prefixes)
		line("Queue", "%d, %d of them refused, %s behind", e.Queue, e.Refused, Seconds(e.LagSeconds))
		line("Commits", "%d of %d changes, %d failed", e.Commits, e.Changes, e.Failures)
	}
	if l := r.Lists; l != nil {
		line("Lists", "%d now, %d served, %d put off", l.Open, l.Served, l.Postponed)
	}
	if m := r.IPCache; m != nil {
		line("Map", "%s, %d of %d entries wanted, %d don't fit, %d failed", m.Map, m.Wanted, m.Capacity, m.Overflow, m.Failed)
	}
	switch o := r.OnDemand; {
	case o == nil:
	case !o.Enabled:
		line("On demand", "off")
	default:
		line("On demand", "%s, %d wait", o.Resolved(), o.Waiting)
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
	table := output.NewTable(w, "SOURCE", "STATE", "SYNCED", "NODES", "IDENTITIES", "ENDPOINTS", "SERVICES",
		"LAST DATA", "REFUSED", "PROBLEM")
	if d := r.Datastore; d != nil {
		name := fmt.Sprintf("own (%s)", d.Kind)
		if d.Backend != "" {
			name = fmt.Sprintf("own (%s, %s)", d.Kind, d.Backend)
		}
		table.Row(d.cells(name, now)...)
	}
	for i := range r.Clusters {
		table.Row(r.Clusters[i].cells(r.Clusters[i].Name, now)...)
	}
	return table.Flush()
}

func (s *Source) cells(name string, now time.Time) []any {
	state := "connected"
	if !s.Connected {
		state = "away"
	}
	if s.Since != nil {
		state += " for " + age(*s.Since, now)
	}
	cells := []any{name, state, output.YesNo(s.Synced)}
	for _, resource := range []wire.Resource{wire.Nodes, wire.Identities, wire.Endpoints, wire.Services} {
		text := "-" // it isn't read of this source
		if of, read := s.Resources[resource]; read {
			text = of.String()
		}
		cells = append(cells, text)
	}
	last := "-"
	if s.LastEvent != nil {
		last = age(*s.LastEvent, now) + " ago"
	}
	refused := uint64(0)
	for _, n := range s.Refused {
		refused += n
	}
	return append(cells, last, refused, cmp.Or(printable(s.Problem), "-"))
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
	table := output.NewTable(w, "EXPORT", "SYNCED", "PUSHED", "ON DEMAND", "NOT GLOBAL", "REFUSED")
	for _, e := range r.Exports {
		table.Row(e.Resource, output.YesNo(e.Synced), e.Pushed, e.OnDemand, e.NotGlobal, e.Refused)
	}
	return table.Flush()
}

// PrintProblems writes what isn't well and why, or nothing.
func (r *Report) PrintProblems(w io.Writer, now time.Time) error {
	if len(r.Problems) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := output.NewTable(w, "PROBLEM OF", "FOR", "REASON")
	for _, p := range r.Problems {
		since := "-"
		if p.Since != nil {
			since = age(*p.Since, now)
		}
		table.Row(p.Subject, since, printable(p.Reason))
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
