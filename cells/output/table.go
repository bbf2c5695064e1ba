// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Table has columns as wide as what is in them. Nothing is written before Flush.
type Table struct{ w *tabwriter.Writer }

// NewTable begins a table, with a line of headers if there are any.
func NewTable(w io.Writer, headers ...string) *Table {
	t := &Table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(headers) > 0 {
		fmt.Fprintln(t.w, strings.Join(headers, "\t"))
	}
	return t
}

// Row adds a line. Its last cell needs no column: it may be as long as it likes.
func (t *Table) Row(cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, cell)
	}
	fmt.Fprintln(t.w)
}

// Flush writes the table. Its error is the first one of all that was written.
func (t *Table) Flush() error { return t.w.Flush() }

// YesNo is what a cell says of what is or isn't so.
func YesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
