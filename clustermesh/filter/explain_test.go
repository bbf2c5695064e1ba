// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// sources are all combinations of what decides about an endpoint.
func sources() (all []Source) {
	for _, exists := range []bool{false, true} {
		for _, annotations := range []map[string]string{nil, annotated("true"), annotated("True"), annotated("false"), annotated("yes")} {
			for _, byDefault := range []bool{false, true} {
				for _, mode := range []SyncMode{SyncAll, SyncOptIn} {
					for _, region := range []string{"", "eu"} {
						for _, pod := range workloads() {
							all = append(all, Source{
								Namespace: "shop", Exists: exists, Annotations: annotations, Pod: pod, Region: region,
								Namespaces: NamespacePolicy{DefaultGlobal: byDefault}, Workloads: WorkloadPolicy{Mode: mode},
							})
						}
					}
				}
			}
		}
	}
	return all
}

// TestExplanationIsTheDecision: whatever is explained is what is decided, and the
// step that is said to decide says so.
func TestExplanationIsTheDecision(t *testing.T) {
	for _, s := range sources() {
		e := s.Explain()
		global := s.Exists && s.Namespaces.Global(s.Annotations)
		require.Equal(t, s.Workloads.Endpoint(global, s.Pod), e.Fate, "%+v", s)
		require.Equal(t, Scope(s.Pod, s.Region), e.Scope, "%+v", s)

		said := map[Rule]string{}
		var deciding []Rule
		for _, step := range e.Steps {
			require.NotEmpty(t, step.Says)
			said[step.Rule] += step.Says + "\n"
			if step.Decides {
				deciding = append(deciding, step.Rule)
			}
		}
		// Read back from the sentences, what they claim is the decision again.
		require.Len(t, deciding, 1, "%+v", s)
		require.Equal(t, global, strings.HasPrefix(said[RuleNamespace], "shop is global"), said[RuleNamespace])
		switch deciding[0] {
		case RuleNamespace:
			require.Equal(t, Kept, e.Fate)
		case RuleMode:
			require.Equal(t, Pushed, e.Fate)
			require.Contains(t, said[RuleMode], "every pod")
		case RulePod:
			saysYes := strings.Contains(said[RulePod], SyncKey+"=true")
			require.Equal(t, saysYes, e.Fate == Pushed, "%+v: %s", s, said[RulePod])
			require.Equal(t, !saysYes, e.Fate == OnDemand, "%+v: %s", s, said[RulePod])
		default:
			require.Fail(t, "decided by", deciding[0])
		}
		require.True(t, strings.HasPrefix(said[RuleScope], e.Scope.String()+":"), said[RuleScope])
		reads := s.Workloads.ReadsPods(s.Region)
		require.Equal(t, reads && s.Pod.Problem != "", strings.Contains(said[RulePod], "counts as absent"), "%+v", s)
		require.Equal(t, !reads, strings.HasPrefix(said[RulePod], "not read"), "what isn't read isn't told of")
	}
}

func TestExplainIdentityIsTheDecision(t *testing.T) {
	for _, global := range []bool{false, true} {
		for _, mode := range []SyncMode{SyncAll, SyncOptIn} {
			for _, users := range []int{0, 1, 2} {
				policy := WorkloadPolicy{Mode: mode}
				fate, says := policy.ExplainIdentity(global, users)
				require.Equal(t, policy.Identity(global, users > 0), fate)
				require.Equal(t, fate == Kept, strings.Contains(says, "isn't global"), says)
				require.Equal(t, fate == OnDemand, strings.Contains(says, "no pushed endpoint"), says)
			}
		}
	}
}

func TestExplainCrossingIsTheDecision(t *testing.T) {
	for _, scope := range []wire.Scope{wire.ScopeGlobal, wire.ScopeRegional} {
		for _, source := range []string{"", "eu", "us"} {
			for _, consumer := range []string{"", "eu", "us"} {
				t.Run(fmt.Sprintf("%s/%s-%s", scope, source, consumer), func(t *testing.T) {
					crosses, says := ExplainCrossing(scope, source, consumer)
					require.Equal(t, Crosses(scope, source, consumer), crosses)
					require.Contains(t, says, scope.String())
					require.Equal(t, !crosses, strings.Contains(says, "not "+consumer) && consumer != "", says)
				})
			}
		}
	}
}

// A region is what another cluster says: it doesn't get to write to terminals.
func TestExplainHostileRegion(t *testing.T) {
	_, says := ExplainCrossing(wire.ScopeRegional, "\x1b[2Jeu\n", "us")
	require.Equal(t, `its scope is regional: for region "\x1b[2Jeu\n", not us`, says)
	require.Equal(t, "eu west", Printable("eu west"))
}

func TestFateAsText(t *testing.T) {
	for _, fate := range []Fate{Kept, OnDemand, Pushed} {
		text, err := json.Marshal(fate)
		require.NoError(t, err)
		require.Equal(t, `"`+fate.String()+`"`, string(text))
		var back Fate
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, fate, back)
	}
	var fate Fate
	require.ErrorContains(t, json.Unmarshal([]byte(`"lost"`), &fate), "lost")
}
