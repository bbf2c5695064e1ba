// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// What a pod says about itself, as an annotation or as a label of that name. By
// default Cilium makes a label a part of the pod's identity, and an annotation not.
const (
	// SyncKey says whether the pod is pushed to other clusters.
	SyncKey = "clustermesh.cilium.io/sync"
	// ScopeKey says how far: to all clusters, or to those of the region.
	ScopeKey = "clustermesh.cilium.io/sync-scope"
)

// FlagSyncMode is the flag of WorkloadPolicy.
const FlagSyncMode = "clustermesh-sync-mode"

// SyncMode says what the pods of global namespaces have to say to be pushed.
type SyncMode string

const (
	// SyncAll pushes all of them, as upstream does. What pods say isn't asked: to
	// know it takes a watch of all pods.
	SyncAll SyncMode = "all"
	// SyncOptIn pushes those that say so.
	SyncOptIn SyncMode = "opt-in"
)

// WorkloadPolicy says which endpoints of global namespaces are pushed. It is also
// the configuration struct of its flag.
type WorkloadPolicy struct {
	Mode SyncMode `mapstructure:"clustermesh-sync-mode"`
}

// DefaultWorkloadPolicy pushes everything.
var DefaultWorkloadPolicy = WorkloadPolicy{Mode: SyncAll}

// Flags registers the flag with p's value as its default.
func (p WorkloadPolicy) Flags(flags *pflag.FlagSet) {
	flags.String(FlagSyncMode, string(p.Mode),
		"Which pods of global namespaces are pushed to other clusters: all, or those that opt in with "+SyncKey+"=true")
}

// Validate refuses a mode that there isn't, naming the flag.
func (p WorkloadPolicy) Validate() error {
	switch p.Mode {
	case SyncAll, SyncOptIn:
		return nil
	}
	return fmt.Errorf("--%s=%q: must be %q or %q", FlagSyncMode, p.Mode, SyncAll, SyncOptIn)
}

// ReadsPods says whether what pods say makes a difference, to a cluster that is in
// this region; "" is none.
func (p WorkloadPolicy) ReadsPods(region string) bool { return p.Mode == SyncOptIn || region != "" }

// Place is where on a pod a setting was found.
type Place string

// The places of a setting.
const (
	Unset        Place = "" // the pod doesn't have it
	AsLabel      Place = "label"
	AsAnnotation Place = "annotation"
)

// Workload is what a pod says about itself. The zero value says nothing.
type Workload struct {
	// Sync is meaningful if SyncFrom isn't Unset.
	Sync     bool
	SyncFrom Place
	// Scope is wire.ScopeGlobal if ScopeFrom is Unset.
	Scope     wire.Scope
	ScopeFrom Place
	// Problem is what is wrong with the settings; they are as if they were absent. Of
	// values that are long it has the beginning.
	Problem string
}

// IsZero says whether the pod says nothing, not even something malformed.
func (w Workload) IsZero() bool { return w == Workload{} }

// ParseWorkload reads a pod's settings. An annotation counts before a label, which
// may come from a template. The values are "true" and "false", "global" and
// "regional", in any case; what is none of these counts as absent and is a Problem.
func ParseWorkload(labels, annotations map[string]string) Workload {
	var (
		w        Workload
		problems []string
	)
	for _, place := range [...]struct {
		name   Place
		values map[string]string
	}{{AsAnnotation, annotations}, {AsLabel, labels}} {
		if value, ok := place.values[SyncKey]; ok {
			sync, err := parseSync(value)
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s %s=%.32q: %v", place.name, SyncKey, value, err))
			} else if w.SyncFrom == Unset {
				w.Sync, w.SyncFrom = sync, place.name
			}
		}
		if value, ok := place.values[ScopeKey]; ok {
			scope, err := parseScope(value)
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s %s=%.32q: %v", place.name, ScopeKey, value, err))
			} else if w.ScopeFrom == Unset {
				w.Scope, w.ScopeFrom = scope, place.name
			}
		}
	}
	w.Problem = strings.Join(problems, "; ")
	return w
}

var (
	errNotSync  = errors.New("must be true or false")
	errNotScope = errors.New("must be global or regional")
)

func parseSync(value string) (bool, error) {
	switch {
	case strings.EqualFold(value, "true"):
		return true, nil
	case strings.EqualFold(value, "false"):
		return false, nil
	}
	return false, errNotSync
}

func parseScope(value string) (wire.Scope, error) {
	switch {
	case strings.EqualFold(value, "global"):
		return wire.ScopeGlobal, nil
	case strings.EqualFold(value, "regional"):
		return wire.ScopeRegional, nil
	}
	return wire.ScopeGlobal, errNotScope
}
