// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"testing"

	"github.com/cilium/cilium/pkg/annotation"
	"github.com/cilium/cilium/pkg/clustermesh/namespace"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/k8s/resource"
	slim_corev1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/core/v1"
	slim_metav1 "github.com/cilium/cilium/pkg/k8s/slim/k8s/apis/meta/v1"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func annotated(value string) map[string]string {
	return map[string]string{GlobalNamespaceAnnotation: value, "other": "true"}
}

func TestGlobal(t *testing.T) {
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		// what is expected with the flag off, and with it on
		off, on bool
	}{
		{"no annotations", nil, false, true},
		{"other annotations", map[string]string{"other": "true"}, false, true},
		{"annotation of similar name", map[string]string{"cilium.io/global": "true", "service.cilium.io/global": "true"}, false, true},
		{"true", annotated("true"), true, true},
		{"TRUE", annotated("TRUE"), true, true},
		{"True", annotated("True"), true, true},
		{"tRuE", annotated("tRuE"), true, true},
		{"false", annotated("false"), false, false},
		{"FALSE", annotated("FALSE"), false, false},
		{"empty", annotated(""), false, false},
		{"space", annotated(" "), false, false},
		{"space before", annotated(" true"), false, false},
		{"space after", annotated("true "), false, false},
		{"line after", annotated("true\n"), false, false},
		{"quoted", annotated(`"true"`), false, false},
		{"yes", annotated("yes"), false, false},
		{"1", annotated("1"), false, false},
		{"t", annotated("t"), false, false},
		{"on", annotated("on"), false, false},
		{"mistyped", annotated("ture"), false, false},
		{"other script", annotated("ｔｒｕｅ"), false, false},
		{"not UTF-8", annotated("\xff"), false, false},
	} {
		for _, flag := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/default %t", tc.name, flag), func(t *testing.T) {
				want := tc.off
				if flag {
					want = tc.on
				}
				require.Equal(t, want, NamespacePolicy{DefaultGlobal: flag}.Global(tc.annotations))
				require.Equal(t, want, upstreamGlobal(t, flag)(tc.annotations), "upstream disagrees")
			})
		}
	}
}

// upstreamGlobal is the same decision by upstream.
func upstreamGlobal(t *testing.T, byDefault bool) func(map[string]string) bool {
	var decider namespace.Manager
	h := hive.New(
		namespace.Cell,
		// Decisions on an object that is at hand need no informer.
		cell.Provide(func() resource.Resource[*slim_corev1.Namespace] { return nil }),
		cell.Invoke(func(m namespace.Manager) { decider = m }),
	)
	hive.AddConfigOverride(h, func(c *namespace.Config) { c.GlobalNamespacesByDefault = byDefault })
	require.NoError(t, h.Populate(hivetest.Logger(t)))
	return func(annotations map[string]string) bool {
		return decider.IsGlobalNamespaceByObject(&slim_corev1.Namespace{
			ObjectMeta: slim_metav1.ObjectMeta{Name: "ns", Annotations: annotations},
		})
	}
}

func TestGlobalAsUpstream(t *testing.T) {
	upstream := map[bool]func(map[string]string) bool{
		false: upstreamGlobal(t, false),
		true:  upstreamGlobal(t, true),
	}
	value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[tT][rR][uU][eE]`), rapid.StringMatching(`.?true.?`))
	rapid.Check(t, func(t *rapid.T) {
		annotations := map[string]string{}
		if rapid.Bool().Draw(t, "annotated") {
			annotations[GlobalNamespaceAnnotation] = value.Draw(t, "value")
		}
		flag := rapid.Bool().Draw(t, "default")
		require.Equal(t, upstream[flag](annotations), NamespacePolicy{DefaultGlobal: flag}.Global(annotations))
	})
}

func TestNamesAndDefaultsOfUpstream(t *testing.T) {
	require.Equal(t, annotation.GlobalNamespace, GlobalNamespaceAnnotation)

	ours := pflag.NewFlagSet("", pflag.ContinueOnError)
	DefaultNamespacePolicy.Flags(ours)
	theirs := pflag.NewFlagSet("", pflag.ContinueOnError)
	namespace.DefaultConfig.Flags(theirs)
	theirs.VisitAll(func(want *pflag.Flag) {
		got := ours.Lookup(want.Name)
		require.NotNil(t, got, want.Name)
		require.Equal(t, want.DefValue, got.DefValue)
		require.Equal(t, want.Value.Type(), got.Value.Type())
	})
	require.NotNil(t, theirs.Lookup(FlagDefaultGlobalNamespace))
}

// The struct and its flag fit together: hive fails on one that doesn't.
func TestNamespacePolicyConfigures(t *testing.T) {
	var got NamespacePolicy
	h := hive.New(cell.Config(DefaultNamespacePolicy), cell.Invoke(func(p NamespacePolicy) { got = p }))
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	h.RegisterFlags(flags)
	require.NoError(t, flags.Parse([]string{"--" + FlagDefaultGlobalNamespace + "=false"}))
	require.NoError(t, h.Populate(hivetest.Logger(t)))
	require.False(t, got.DefaultGlobal)
}
