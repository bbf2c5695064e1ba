// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestDecisions goes through every combination of what decides, and compares with
// the rules as they are written down, one sentence each.
func TestDecisions(t *testing.T) {
	for _, global := range []bool{false, true} {
		for _, mode := range []SyncMode{SyncAll, SyncOptIn} {
			policy := WorkloadPolicy{Mode: mode}
			for _, used := range []bool{false, true} {
				t.Run(fmt.Sprintf("identity/global=%t,mode=%s,used=%t", global, mode, used), func(t *testing.T) {
					got := policy.Identity(global, used)
					require.Equal(t, !global, got == Kept, "a namespace that isn't global exports nothing")
					require.Equal(t, global && (mode == SyncAll || used), got == Pushed, "pushed while a pushed endpoint uses it")
				})
			}
			for _, w := range workloads() {
				t.Run(fmt.Sprintf("endpoint/global=%t,mode=%s,%+v", global, mode, w), func(t *testing.T) {
					got := policy.Endpoint(global, w)
					saysYes := w.SyncFrom != Unset && w.Sync
					require.Equal(t, !global, got == Kept, "a pod never escapes its namespace")
					require.Equal(t, global && (mode == SyncAll || saysYes), got == Pushed, "opted in, or nobody has to")
					require.Equal(t, global && mode == SyncOptIn && !saysYes, got == OnDemand, "what isn't pushed can be looked up")
				})
			}
		}
	}
	for _, w := range workloads() {
		require.Equal(t, wire.ScopeGlobal, Scope(w, ""), "without a region nothing is regional")
		require.Equal(t, w.Scope, Scope(w, "eu"))
	}
}

func workloads() (all []Workload) {
	for _, syncFrom := range []Place{Unset, AsLabel, AsAnnotation} {
		for _, sync := range []bool{false, true} {
			for _, scopeFrom := range []Place{Unset, AsLabel, AsAnnotation} {
				for _, scope := range []wire.Scope{wire.ScopeGlobal, wire.ScopeRegional} {
					if syncFrom == Unset && sync || scopeFrom == Unset && scope != wire.ScopeGlobal {
						continue
					}
					for _, problem := range []string{"", "label x"} {
						all = append(all, Workload{Sync: sync, SyncFrom: syncFrom, Scope: scope, ScopeFrom: scopeFrom, Problem: problem})
					}
				}
			}
		}
	}
	return all
}

func TestCrosses(t *testing.T) {
	for _, tc := range []struct {
		scope            wire.Scope
		source, consumer string
		crosses          bool
	}{
		{wire.ScopeGlobal, "", "", true},
		{wire.ScopeGlobal, "eu", "", true},
		{wire.ScopeGlobal, "", "eu", true},
		{wire.ScopeGlobal, "eu", "eu", true},
		{wire.ScopeGlobal, "eu", "us", true},
		{wire.ScopeRegional, "", "", true},
		{wire.ScopeRegional, "eu", "", true},
		{wire.ScopeRegional, "", "eu", true},
		{wire.ScopeRegional, "eu", "eu", true},
		{wire.ScopeRegional, "eu", "us", false},
		{wire.ScopeRegional, "us", "eu", false},
		{wire.ScopeRegional, "EU", "eu", false}, // names are compared as they are
	} {
		require.Equal(t, tc.crosses, Crosses(tc.scope, tc.source, tc.consumer), tc)
	}
}
