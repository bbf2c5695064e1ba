// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
)

// Print writes the explanation as text, rule by rule and address by address.
func (e *Explanation) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s/%s/%s\n", e.Cluster, e.Namespace, e.Pod)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, step := range e.Steps {
		fmt.Fprintf(table, "  %s\t%s\n", step.Rule, step.Says)
	}
	fmt.Fprintf(table, "  =>\t%s\n", outcome(e.Fate))
	if err := table.Flush(); err != nil {
		return err
	}
	for i := range e.Endpoints {
		e.Endpoints[i].print(w, e.EtcdError == "")
	}
	for _, note := range e.notes() {
		if _, err := fmt.Fprintf(w, "  note: %s\n", note); err != nil {
			return err
		}
	}
	return nil
}

func outcome(fate filter.Fate) string {
	switch fate {
	case filter.Pushed:
		return "pushed: other clusters watch it"
	case filter.OnDemand:
		return "on demand: in etcd, where nobody watches it"
	}
	return "kept: not in etcd at all"
}

// print writes one address. asked says whether etcd was.
func (e *EndpointExplanation) print(w io.Writer, asked bool) {
	if e.Holder != "" {
		fmt.Fprintf(w, "  %s\n    held by %s: this pod's claim waits until that one is gone\n", address(e), e.Holder)
		return
	}
	fmt.Fprintf(w, "  %s\n    %s\n", address(e), e.Endpoint.text(asked))
	if len(e.Waiting) > 0 {
		fmt.Fprintf(w, "    also claimed by %s, once this pod is gone\n", strings.Join(e.Waiting, ", "))
	}
	if !e.IdentityKnown {
		fmt.Fprintf(w, "    identity %d %s\n", e.ID, e.IdentityStep.Says)
		return
	}
	fmt.Fprintf(w, "    identity %d: %s\n    %s\n", e.ID, e.IdentityStep.Says, e.Identity.text(asked))
}

func address(e *EndpointExplanation) string {
	if e.Address.IsSingleIP() {
		return e.Address.Addr().String()
	}
	return e.Address.String()
}

// text says where it belongs, and where it is if that is another place.
func (l Location) text(asked bool) string {
	text := l.Fate.String()
	if l.Key != "" {
		text += "  " + l.Key
	}
	if !asked {
		return text
	}
	var others []string
	there := false
	for _, key := range l.Found {
		if key == l.Key {
			there = true
		} else {
			others = append(others, key)
		}
	}
	if l.Key != "" && !there {
		text += "  (not in etcd)"
	}
	if len(others) > 0 {
		text += "  (still in etcd: " + strings.Join(others, ", ") + ")"
	}
	return text
}

// notes are what else there is to know before the answer is believed.
func (e *Explanation) notes() (notes []string) {
	switch {
	case len(e.Waits) > 0:
		notes = append(notes, fmt.Sprintf("%s's exporter has not read everything yet (%s): this may change", e.Cluster, strings.Join(e.Waits, ", ")))
	case !e.Written:
		notes = append(notes, fmt.Sprintf("%s's exporter has not written everything yet", e.Cluster))
	}
	if e.EtcdError != "" {
		notes = append(notes, "what etcd has is unknown: "+e.EtcdError)
	}
	switch {
	case len(e.Endpoints) > 0:
	case e.PodKnown:
		notes = append(notes, "there is a pod, and no endpoint of it yet: nothing is synced until Cilium has made one")
	case e.PodsRead:
		notes = append(notes, "no endpoint of such a pod is known, and no pod of that name says anything")
	default:
		notes = append(notes, "no endpoint of such a pod is known")
	}
	return notes
}
