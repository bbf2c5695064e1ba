// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// FilterStatus is what an exporter says about its filters as a whole.
type FilterStatus struct {
	Part    string `json:"part"`
	Cluster string `json:"cluster"`
	Mode    string `json:"mode"`
	Region  string `json:"region,omitempty"`
	// Resources are in the order of wire.Resources.
	Resources []ResourceFilterStatus `json:"resources"`
	// Malformed counts the pods with malformed settings, and Examples are the first
	// of them.
	Malformed int            `json:"malformed"`
	Examples  []MalformedPod `json:"examples,omitempty"`
}

// ResourceFilterStatus counts what became of a resource.
type ResourceFilterStatus struct {
	Resource  wire.Resource `json:"resource"`
	Pushed    int           `json:"pushed"`
	OnDemand  int           `json:"onDemand"`
	NotGlobal int           `json:"notGlobal"`
	Refused   int           `json:"refused"`
	Synced    bool          `json:"synced"`
}

// MalformedPod is a pod whose settings are malformed, and how.
type MalformedPod struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Problem   string `json:"problem"`
}

// status reads the tables. limit bounds the examples.
func (x *explainer) status(txn statedb.ReadTxn, limit int) FilterStatus {
	out := FilterStatus{Part: PartExporter, Cluster: x.cluster, Mode: string(x.workloads.Mode), Region: x.region}
	for _, resource := range wire.Resources {
		row, _, found := x.tables.Exports.Get(txn, state.ExportByResource(resource))
		if !found {
			continue
		}
		out.Resources = append(out.Resources, ResourceFilterStatus{
			Resource: resource, Pushed: row.Pushed, OnDemand: row.OnDemand,
			NotGlobal: row.NotGlobal, Refused: row.Refused, Synced: row.Synced,
		})
	}
	for row := range Malformed(txn, x.tables.Workloads) {
		if out.Malformed++; len(out.Examples) < limit {
			out.Examples = append(out.Examples, MalformedPod{row.Namespace, row.Pod, row.Problem})
		}
	}
	return out
}

// Malformed lists the pods with malformed settings by name, with a walk over those
// that say anything.
func Malformed(txn statedb.ReadTxn, workloads statedb.Table[*state.Workload]) iter.Seq[*state.Workload] {
	return func(yield func(*state.Workload) bool) {
		for row := range workloads.All(txn) {
			if row.Problem != "" && !yield(row) {
				return
			}
		}
	}
}

// Remarkable says whether anything is left out, or malformed.
func (s *FilterStatus) Remarkable() bool {
	return s.Malformed > 0 || slices.ContainsFunc(s.Resources, ResourceFilterStatus.remarkable)
}

func (r ResourceFilterStatus) remarkable() bool { return r.OnDemand+r.NotGlobal+r.Refused > 0 }

// PrintFilterStatus writes a table of some exporters' status, and below it the pods
// with malformed settings. Unless all is set, the table has only the resources of which
// something is left out.
func PrintFilterStatus(w io.Writer, status []FilterStatus, all bool) error {
	table := output.NewTable(w, "CLUSTER", "SYNC MODE", "REGION", "RESOURCE", "PUSHED", "ON DEMAND", "NOT GLOBAL", "REFUSED")
	for i := range status {
		for _, of := range status[i].Resources {
			if all || of.remarkable() {
				table.Row(status[i].Cluster, status[i].Mode, OrDash(status[i].Region),
					of.Resource, of.Pushed, of.OnDemand, of.NotGlobal, of.Refused)
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i := range status {
		if err := status[i].printMalformed(w); err != nil {
			return err
		}
	}
	return nil
}

func (s *FilterStatus) printMalformed(w io.Writer) error {
	if s.Malformed == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nMalformed settings of pods in %s, which count as absent:\n", s.Cluster)
	for _, pod := range s.Examples {
		fmt.Fprintf(w, "  %s/%s: %s\n", pod.Namespace, pod.Pod, pod.Problem)
	}
	if more := s.Malformed - len(s.Examples); more > 0 {
		if _, err := fmt.Fprintf(w, "  and %d more\n", more); err != nil {
			return err
		}
	}
	return nil
}

// OrDash is the text as a terminal may have it, or a dash in the place of none.
func OrDash(text string) string {
	if text == "" {
		return "-"
	}
	return filter.Printable(text)
}
