// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"fmt"
	"io"
	"strings"

	"github.com/waggle-mesh/waggle/cells/output"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Print writes the explanation as text: the rules, then each address and identity.
func (e *Explanation) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s/%s/%s\n", e.Cluster, e.Namespace, e.Pod)
	table := output.NewTable(w)
	for _, step := range e.Steps {
		table.Row("  "+step.Rule, step.Says)
	}
	table.Row("  =>", outcome(e.Fate))
	identities := map[uint32]struct{}{}
	for i := range e.Endpoints {
		table.Row("  "+wire.EndpointKey(e.Endpoints[i].Address), e.Endpoints[i].text(e.EtcdError == ""))
	}
	for i := range e.Endpoints {
		ep := &e.Endpoints[i]
		if _, told := identities[ep.ID]; told || ep.Holder != "" {
			continue
		}
		identities[ep.ID] = struct{}{}
		table.Row(fmt.Sprintf("  identity %d", ep.ID), ep.identityText(e.EtcdError == ""))
	}
	for _, note := range e.notes() {
		table.Row("  note", note)
	}
	return table.Flush()
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

// text is about the address; asked says whether etcd was.
func (e *EndpointExplanation) text(asked bool) string {
	if e.Holder != "" {
		return fmt.Sprintf("held by %s: this pod's claim waits until that one is gone", e.Holder)
	}
	text := e.Endpoint.text(asked)
	if len(e.Waiting) > 0 {
		text += "; also claimed by " + strings.Join(e.Waiting, ", ")
	}
	return text
}

func (e *EndpointExplanation) identityText(asked bool) string {
	if !e.IdentityKnown {
		return e.IdentityStep.Says
	}
	return e.Identity.text(asked) + ": " + e.IdentityStep.Says
}

// text says where it belongs, and where it is if that is another place.
func (l Location) text(asked bool) string {
	text := l.Fate.String()
	if l.Key != "" {
		text += " " + l.Key
	}
	if asked {
		text += l.foundText()
	}
	if l.Refused != "" {
		text += "; it can't be encoded: " + filter.Printable(l.Refused)
	}
	return text
}

// foundText says where it is, if that isn't where it belongs.
func (l Location) foundText() (text string) {
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
		text += " (not in etcd)"
	}
	if len(others) > 0 {
		text += " (still in etcd: " + strings.Join(others, ", ") + ")"
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
