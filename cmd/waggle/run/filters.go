// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

// Filters is what exporters and KVStoreMeshes say about what they leave out.
type Filters struct {
	Exporters     []export.FilterStatus      `json:"exporters"`
	KVStoreMeshes []kvstoremesh.FilterStatus `json:"kvstoremeshes"`
	// Problems are the processes that can't be asked.
	Problems []string `json:"problems,omitempty"`
}

// Filters asks all processes that filter.
func (s *Status) Filters() Filters {
	var all Filters
	for _, p := range s.layout.filterProcesses() {
		if err := all.ask(p.socket); err != nil {
			all.Problems = append(all.Problems, fmt.Sprintf("%s/%s: %s", p.cluster, p.part, shorten(err)))
		}
	}
	return all
}

// filtersOf asks one process; those that filter nothing say nothing.
func filtersOf(socket string) (all Filters, err error) {
	help, err := ask(socket, "help")
	if err != nil || !strings.Contains(help, filterStatusCommand) {
		return all, err
	}
	return all, all.ask(socket)
}

const filterStatusCommand = "filter/status"

// ask adds what a process says.
func (f *Filters) ask(socket string) error {
	var raw json.RawMessage
	if err := askJSON(socket, filterStatusCommand+" -o json", &raw); err != nil {
		return err
	}
	var who struct{ Part string }
	if err := json.Unmarshal(raw, &who); err != nil {
		return fmt.Errorf("reading the status of filters: %w", err)
	}
	var err error
	if who.Part == export.PartExporter {
		var status export.FilterStatus
		err = json.Unmarshal(raw, &status)
		f.Exporters = append(f.Exporters, status)
	} else {
		var status kvstoremesh.FilterStatus
		err = json.Unmarshal(raw, &status)
		f.KVStoreMeshes = append(f.KVStoreMeshes, status)
	}
	if err != nil {
		return fmt.Errorf("reading the status of filters: %w", err)
	}
	return nil
}

// remarkable says whether anything is left out at all.
func (f *Filters) remarkable() bool { return f.withholds() || f.skips() }

func (f *Filters) withholds() bool {
	return slices.ContainsFunc(f.Exporters, func(s export.FilterStatus) bool { return s.Remarkable() })
}

func (f *Filters) skips() bool {
	return slices.ContainsFunc(f.KVStoreMeshes, func(s kvstoremesh.FilterStatus) bool { return s.Remarkable() })
}

// Print writes two tables: what exporters have, and what KVStoreMeshes leave out. Unless
// all is set, they have only what is left out, and there is none without. A line is left
// free before each, but before the first if it is the first of all.
func (f *Filters) Print(w io.Writer, all, first bool) error {
	gap := func() {
		if !first {
			fmt.Fprintln(w)
		}
		first = false
	}
	exports := all || f.withholds()
	if exports && len(f.Exporters) > 0 {
		gap()
		if err := export.PrintFilterStatus(w, f.Exporters, all); err != nil {
			return err
		}
	}
	skips := all || f.skips()
	if skips && len(f.KVStoreMeshes) > 0 {
		gap()
		if err := kvstoremesh.PrintFilterStatus(w, f.KVStoreMeshes, all); err != nil {
			return err
		}
	}
	for _, problem := range f.Problems {
		gap()
		if _, err := fmt.Fprintf(w, "Not known is what filters leave out in %s\n", problem); err != nil {
			return err
		}
	}
	return nil
}
