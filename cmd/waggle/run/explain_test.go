// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package run

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/export"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/kvstoremesh"
)

func TestParsePodName(t *testing.T) {
	name, err := ParsePodName("amber/shop/cart-0.x")
	require.NoError(t, err)
	require.Equal(t, PodName{"amber", "shop", "cart-0.x"}, name)
	require.Equal(t, "amber/shop/cart-0.x", name.String())
	for text, problem := range map[string]string{
		"":                                       "CLUSTER/NAMESPACE/POD",
		"shop/cart":                              "CLUSTER/NAMESPACE/POD",
		"amber/shop/cart/0":                      "CLUSTER/NAMESPACE/POD",
		"amber/shop/":                            "name of a pod",
		"amber//cart":                            "name of a namespace",
		"Amber/shop/cart":                        "name of a cluster",
		"amber/shop/cart\nx":                     "name of a pod",
		"amber/shop/ct; x":                       "name of a pod",
		"amber/shop/cart -o":                     "name of a pod",
		"amber/shop/-o":                          "name of a pod",
		"amber/shop/" + strings.Repeat("x", 254): "name of a pod",
	} {
		_, err := ParsePodName(text)
		require.ErrorContains(t, err, problem, "%q", text)
		require.ErrorContains(t, err, fmt.Sprintf("%q", text), "it names what is wrong")
	}
}

// TestArrivals: what a KVStoreMesh has is held against the very decisions, over all
// that they depend on.
func TestArrivals(t *testing.T) {
	address := netip.MustParsePrefix("10.1.0.4/32")
	for _, fate := range []filter.Fate{filter.Kept, filter.OnDemand, filter.Pushed} {
		for _, scope := range []wire.Scope{wire.ScopeGlobal, wire.ScopeRegional} {
			for _, regions := range [][2]string{{"", ""}, {"eu", ""}, {"", "eu"}, {"eu", "eu"}, {"us", "eu"}} {
				for _, taken := range []bool{false, true} {
					for _, state := range []struct{ known, connected, synced bool }{
						{}, {known: true}, {known: true, connected: true}, {true, true, true},
					} {
						says := &kvstoremesh.Explanation{Source: "amber", Cluster: "basil", SourceRegion: regions[0], Region: regions[1],
							Known: state.known, Connected: state.connected, Synced: state.synced}
						got := arrival(fate, scope.String(), says, kvstoremesh.Address{Address: address, Taken: taken})
						name := fmt.Sprintf("%s %s %v taken=%t %+v: %s", fate, scope, regions, taken, state, got)

						wanted := fate == filter.Pushed && filter.Crosses(scope, regions[0], regions[1])
						require.Equal(t, taken && wanted, got.Outcome == OutcomeSynced, name)
						require.Equal(t, taken && !wanted, got.Outcome == OutcomeLeaving, name)
						require.Equal(t, !taken && fate != filter.Pushed, got.Outcome == OutcomeNotPushed, name)
						require.Equal(t, !taken && fate == filter.Pushed && !wanted, got.Outcome == OutcomeSkipped, name)
						require.Equal(t, !taken && wanted && !state.connected, got.Outcome == OutcomeNotConnected, name)
						require.Equal(t, !taken && wanted && state.connected, got.Outcome == OutcomePending, name)
						require.NotEmpty(t, got.Why, name)
						if taken && !state.connected {
							require.Contains(t, got.Why, "amber", "what is old says so: %s", name)
						}
					}
				}
			}
		}
	}
	says := &kvstoremesh.Explanation{EtcdError: "away"}
	require.Equal(t, OutcomeUnknown, arrival(filter.Pushed, "global", says, kvstoremesh.Address{}).Outcome)
	says = &kvstoremesh.Explanation{Source: "amber", Known: true, Connected: true, Synced: true, Refused: 3}
	require.Contains(t, arrival(filter.Pushed, "global", says, kvstoremesh.Address{}).Why, "3 values of amber are refused")
}

func TestPrintExplanation(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.1.0.4/32"), netip.MustParsePrefix("fd00::4/128")
	source := filter.Source{
		Namespace: "shop", Exists: true, Annotations: map[string]string{filter.GlobalNamespaceAnnotation: "true"},
		Pod:       filter.ParseWorkload(nil, map[string]string{filter.SyncKey: "true", filter.ScopeKey: "regional"}),
		Workloads: filter.WorkloadPolicy{Mode: filter.SyncOptIn}, Region: "eu",
	}
	decision := source.Explain()
	key := "cilium/state/ip/v1/default/10.1.0.4"
	e := Explanation{
		Source: export.Explanation{
			Cluster: "amber", Namespace: "shop", Pod: "cart-0", Written: true, PodKnown: true, NamespaceKnown: true, PodsRead: true,
			Steps: decision.Steps, Fate: decision.Fate, Scope: decision.Scope.String(),
			Endpoints: []export.EndpointExplanation{{
				Address: v4, ID: 65540, IdentityKnown: true, IdentityStep: filter.Step{Says: "a pushed endpoint has it"},
				Endpoint: export.Location{Fate: filter.Pushed, Key: key, Found: []string{key}},
				Identity: export.Location{Fate: filter.Pushed, Key: "i", Found: []string{"i"}},
			}},
		},
		Readers: []Reader{
			{Cluster: "basil", Says: &kvstoremesh.Explanation{Region: "us"},
				Arrivals: []Arrival{{v4, OutcomeSkipped, "x"}, {v6, OutcomeSkipped, "x"}}},
			{Cluster: "coral", Says: &kvstoremesh.Explanation{},
				Arrivals: []Arrival{{v4, OutcomeSynced, "x"}, {v6, OutcomePending, "y"}}},
			{Cluster: "dill", Problem: "its KVStoreMesh: not running"},
		},
	}
	var out strings.Builder
	require.NoError(t, e.Print(&out))
	require.Equal(t, strings.TrimLeft(`
amber/shop/cart-0
  namespace       shop is global: annotation clustermesh.cilium.io/global=true
  mode            --clustermesh-sync-mode=opt-in: pods of global namespaces are pushed if they say so
  pod             annotation clustermesh.cilium.io/sync=true
  scope           regional: annotation clustermesh.cilium.io/sync-scope; this cluster is in region eu
  =>              pushed: other clusters watch it
  10.1.0.4        pushed cilium/state/ip/v1/default/10.1.0.4
  identity 65540  pushed i: a pushed endpoint has it
  => basil (us)      skipped by region: x
  => coral 10.1.0.4  synced: x
  => coral fd00::4   not there: y
  => dill            unknown: its KVStoreMesh: not running
`, "\n"), out.String())
}
