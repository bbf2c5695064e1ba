// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Rule names a rule where a decision is explained.
type Rule string

// The rules, in the order in which they are asked.
const (
	RuleNamespace Rule = "namespace"
	RuleMode      Rule = "mode"
	RulePod       Rule = "pod"
	RuleScope     Rule = "scope"
	RuleIdentity  Rule = "identity"
)

// Step is one rule as it was applied.
type Step struct {
	Rule Rule   `json:"rule"`
	Says string `json:"says"`
	// Decides: this rule settles the fate. Those after it change nothing.
	Decides bool `json:"decides,omitempty"`
}

// Explanation is a decision with its reasons.
type Explanation struct {
	Steps []Step
	// Fate and Scope are what Endpoint and Scope say.
	Fate  Fate
	Scope wire.Scope
}

// Source is what the decision about the endpoints of a pod is made from.
type Source struct {
	Namespace string
	// Exists: the namespace does; Annotations are its.
	Exists      bool
	Annotations map[string]string
	// Pod is what it says, if the cluster reads that.
	Pod Workload

	// The flags of the cluster.
	Namespaces NamespacePolicy
	Workloads  WorkloadPolicy
	Region     string
}

// Global says whether the pod's namespace exports anything.
func (s Source) Global() bool { return s.Exists && s.Namespaces.Global(s.Annotations) }

// Explain gives the decision, made by Endpoint and Scope, and the rules that led to it.
func (s Source) Explain() Explanation {
	global := s.Global()
	e := Explanation{Fate: s.Workloads.Endpoint(global, s.Pod), Scope: Scope(s.Pod, s.Region)}
	e.Steps = append(e.Steps,
		Step{Rule: RuleNamespace, Says: s.namespace(global), Decides: !global},
		Step{Rule: RuleMode, Says: s.mode(), Decides: global && s.Workloads.Mode == SyncAll},
		Step{Rule: RulePod, Says: s.pod(global), Decides: global && s.Workloads.Mode != SyncAll})
	if s.reads() && s.Pod.Problem != "" {
		e.Steps = append(e.Steps, Step{Rule: RulePod, Says: "counts as absent: " + s.Pod.Problem})
	}
	e.Steps = append(e.Steps, Step{Rule: RuleScope, Says: s.scope()})
	return e
}

func (s Source) reads() bool { return s.Workloads.ReadsPods(s.Region) }

func (s Source) namespace(global bool) string {
	value, annotated := s.Annotations[GlobalNamespaceAnnotation]
	flag := fmt.Sprintf("no annotation, and --%s=%t", FlagDefaultGlobalNamespace, s.Namespaces.DefaultGlobal)
	switch {
	case !s.Exists:
		return fmt.Sprintf("%s doesn't exist, as far as is known: nothing of it is exported", s.Namespace)
	case !annotated && global:
		return fmt.Sprintf("%s is global: %s", s.Namespace, flag)
	case !annotated:
		return fmt.Sprintf("%s isn't global: %s", s.Namespace, flag)
	case global:
		return fmt.Sprintf("%s is global: annotation %s=%s", s.Namespace, GlobalNamespaceAnnotation, value)
	}
	return fmt.Sprintf("%s isn't global: annotation %s=%q, and only true is", s.Namespace, GlobalNamespaceAnnotation, value)
}

func (s Source) mode() string {
	if s.Workloads.Mode == SyncAll {
		return fmt.Sprintf("--%s=%s: every pod of a global namespace is pushed", FlagSyncMode, s.Workloads.Mode)
	}
	return fmt.Sprintf("--%s=%s: pods of global namespaces are pushed if they say so", FlagSyncMode, s.Workloads.Mode)
}

func (s Source) pod(global bool) string {
	if !s.reads() {
		return "not read: what it says about " + SyncKey + " doesn't matter"
	}
	says := fmt.Sprintf("says nothing valid about %s", SyncKey)
	if s.Pod.Problem == "" {
		says = fmt.Sprintf("says nothing about %s", SyncKey)
	}
	if s.Pod.SyncFrom != Unset {
		says = fmt.Sprintf("%s %s=%t", s.Pod.SyncFrom, SyncKey, s.Pod.Sync)
	}
	switch {
	case s.Workloads.Mode == SyncAll:
		return says + ", which doesn't matter"
	case !global && s.Pod.Sync:
		return says + ", which gets no pod out of a namespace that isn't global"
	}
	return says
}

func (s Source) scope() string {
	switch {
	case s.Region == "":
		return "global: this cluster has no --cluster-region, so that no scope is read"
	case s.Pod.ScopeFrom == Unset:
		return fmt.Sprintf("global: the pod says nothing else; this cluster is in region %s", s.Region)
	}
	return fmt.Sprintf("%s: %s %s; this cluster is in region %s", s.Pod.Scope, s.Pod.ScopeFrom, ScopeKey, s.Region)
}

// ExplainIdentity gives Identity's decision about an identity and the reason. users
// counts the endpoints that are pushed and have it.
func (p WorkloadPolicy) ExplainIdentity(global bool, users int) (Fate, string) {
	fate := p.Identity(global, users > 0)
	switch {
	case !global:
		return fate, "its namespace isn't global"
	case p.Mode == SyncAll:
		return fate, "its namespace is global"
	case users == 1:
		return fate, "a pushed endpoint has it"
	case users > 1:
		return fate, fmt.Sprintf("%d pushed endpoints have it", users)
	}
	return fate, "no pushed endpoint has it"
}

// ExplainCrossing gives Crosses' decision and the reason.
func ExplainCrossing(scope wire.Scope, source, consumer string) (bool, string) {
	crosses := Crosses(scope, source, consumer)
	source, consumer = Printable(source), Printable(consumer)
	switch {
	case scope != wire.ScopeRegional:
		return crosses, "its scope is global"
	case source == "":
		return crosses, "its scope is regional, and its cluster has no region"
	case consumer == "":
		return crosses, "its scope is regional, and the reader has no --cluster-region, which takes everything"
	case crosses:
		return crosses, "its scope is regional, and both are in region " + source
	}
	return crosses, fmt.Sprintf("its scope is regional: for region %s, not %s", source, consumer)
}

// Printable is a text for a terminal, quoted if it has what a terminal would act on:
// another cluster may call its region anything.
func Printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// MarshalText gives the fate as people read it.
func (f Fate) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText gives.
func (f *Fate) UnmarshalText(text []byte) error {
	for _, fate := range []Fate{Kept, OnDemand, Pushed} {
		if fate.String() == string(text) {
			*f = fate
			return nil
		}
	}
	return fmt.Errorf("%q is no fate of an endpoint", text)
}
