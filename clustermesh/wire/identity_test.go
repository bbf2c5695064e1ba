// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/identity"
	api "github.com/cilium/cilium/pkg/k8s/apis/cilium.io"
	"github.com/cilium/cilium/pkg/labels"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestIdentityConstantsOfUpstream(t *testing.T) {
	require.Equal(t, api.PolicyLabelCluster, LabelCluster)
	require.Equal(t, api.PodNamespaceLabel, LabelNamespace)
	require.Equal(t, identity.MinimalNumericIdentity.Uint32(), MinIdentity)
	require.Equal(t, identity.NumericIdentityBitlength, identityBits)
}

func TestDecodeIdentity(t *testing.T) {
	value := []byte("k8s:app=web;")
	got, err := DecodeIdentity("70247", value)
	require.NoError(t, err)
	require.Equal(t, Identity{ID: 70247, Labels: "k8s:app=web;"}, got)
	require.Equal(t, "70247", IdentityKey(got.ID))
	value[0] = 'X'
	require.Equal(t, "k8s:app=web;", got.Labels, "it must not refer to the value")

	_, err = DecodeIdentity("70247", nil)
	requireRefusal(t, err, Identities, "70247", ReasonMalformed)
	for _, key := range []string{"", "0", "00", "070247", "+1", "-1", "0x10", "1_000", "4294967296", "web", "1/2", " 1"} {
		_, err = DecodeIdentity(key, value)
		requireRefusal(t, err, Identities, key, ReasonBadKey)
	}
}

func TestEncodeIdentityLabels(t *testing.T) {
	require.Empty(t, EncodeIdentityLabels(nil))
	require.Equal(t,
		"k8s:app=web;k8s:empty=;k8s:io.cilium.k8s.policy.cluster=east;reserved:host=;unspec:bare=x=y;",
		sortedByKey(EncodeIdentityLabels(map[string]string{
			"k8s:io.cilium.k8s.policy.cluster": "east", "k8s:app": "web", "bare": "x=y", "k8s:empty": "", "reserved:host": "",
		})))
	// The schema keeps one label for each key, whatever its source.
	for range 20 {
		require.Equal(t, "k8s:app=b;", EncodeIdentityLabels(map[string]string{"any:app": "a", "k8s:app": "b"}))
	}
}

// sortedByKey orders labels by source too, so that a test can be read.
func sortedByKey(text string) string {
	parts := strings.Split(strings.TrimSuffix(text, ";"), ";")
	for i := range parts {
		for j := i + 1; j < len(parts); j++ {
			if parts[j] < parts[i] {
				parts[i], parts[j] = parts[j], parts[i]
			}
		}
	}
	return strings.Join(parts, ";") + ";"
}

func TestEncodeIdentityLabelsAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Keys are unique whatever their source, see EncodeIdentityLabels.
		keys := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z./=;]{1,8}`), 0, 8, rapid.ID).Draw(t, "keys")
		in := map[string]string{}
		for _, key := range keys {
			source := rapid.SampledFrom([]string{"", "k8s:", "any:", "container:", ":"}).Draw(t, "source")
			in[source+key] = text().Draw(t, "value")
		}
		want := string(labels.Map2Labels(in, "").SortedList())
		require.Equal(t, want, EncodeIdentityLabels(in))
	})
}

func TestLabel(t *testing.T) {
	const list = "any:app=other;k8s:app=web;k8s:app.kind=x=y;k8s:empty=;k8s:io.cilium.k8s.policy.cluster=east;" +
		"k8s:bare;k8s:io.kubernetes.pod.namespace=shop"
	for _, tc := range []struct {
		key, value string
		ok         bool
	}{
		{"app", "web", true},
		{"app.kind", "x=y", true},
		{"empty", "", true},
		{"bare", "", true},
		{LabelCluster, "east", true},
		{LabelNamespace, "shop", true},
		{"ap", "", false},
		{"kind", "", false},
		{"", "", false},
	} {
		value, ok := Label(list, tc.key)
		require.Equal(t, tc.ok, ok, tc.key)
		require.Equal(t, tc.value, value, tc.key)
	}
	_, ok := Label("", "app")
	require.False(t, ok)
	require.Zero(t, testing.AllocsPerRun(100, func() { Label(list, LabelNamespace) }))
}

// labelText gives what looks like a list of labels, more or less.
func labelText() *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{
		"k8s", "any", "reserved", "reserved.", "$", ":", ":", "=", "=", ";", ";", ".", "app", "a", LabelCluster, "east", "é", "\xff",
	}), 0, 20), func(parts []string) string { return strings.Join(parts, "") })
}

func TestLabelsAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := labelText().Draw(t, "labels")
		var want, got []labels.Label
		for _, l := range labels.NewLabelArrayFromSortedList(list) {
			want = append(want, l)
		}
		for _, one := range strings.Split(list, ";") {
			source, key, value := splitLabel(one)
			if key != "" {
				got = append(got, labels.Label{Source: source, Key: key, Value: value})
			}
		}
		require.Equal(t, want, got, "%q", list)
	})
}

// Upstream fixes the split of identities once in a process: the larger mesh is
// looked at by a second one.
const envMaxClusters = "WAGGLE_TEST_MAX_CONNECTED_CLUSTERS"

func TestIdentityRangeFor(t *testing.T) {
	size := uint32(cmtypes.ClusterIDExt511)
	if os.Getenv(envMaxClusters) == "" {
		second := exec.Command(os.Args[0], "-test.run=^TestIdentityRangeFor$")
		second.Env = append(os.Environ(), envMaxClusters+"=511")
		out, err := second.CombinedOutput()
		require.NoError(t, err, "%s", out)
		size = DefaultClusterInfo.MaxConnectedClusters
	} else {
		require.NoError(t, cmtypes.ClusterInfo{MaxConnectedClusters: size}.InitClusterIDMax())
	}
	for id := uint32(0); id <= size; id++ {
		require.Equal(t, IdentityRange{
			Min: identity.GetMinimalAllocationIdentity(id).Uint32(),
			Max: identity.GetMaximumAllocationIdentity(id).Uint32(),
		}, IdentityRangeFor(id, size), "cluster %d of %d", id, size)
	}
}

func TestIdentityRangeEdges(t *testing.T) {
	require.Equal(t, IdentityRange{256, 65535}, IdentityRangeFor(0, 255))
	require.Equal(t, IdentityRange{65536, 131071}, IdentityRangeFor(1, 255))
	require.Equal(t, IdentityRange{255 << 16, 1<<24 - 1}, IdentityRangeFor(255, 255))
	require.Equal(t, IdentityRange{32768, 65535}, IdentityRangeFor(1, 511))
	require.Equal(t, IdentityRange{511 << 15, 1<<24 - 1}, IdentityRangeFor(511, 511))

	r := IdentityRangeFor(256, 255)
	for _, id := range []uint32{0, 1, 256, 1 << 24, 1<<32 - 1} {
		require.False(t, r.Contains(id))
	}
	r = IdentityRangeFor(1, 255)
	require.False(t, r.Contains(65535))
	require.True(t, r.Contains(65536))
	require.True(t, r.Contains(131071))
	require.False(t, r.Contains(131072))
}

func FuzzDecodeIdentity(f *testing.F) {
	f.Add("70247", []byte("k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;"))
	f.Add("1", []byte("$:=;reserved.host;=;"))
	v := NewValidator("east", 1, 255)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		id, err := DecodeIdentity(key, value)
		if err != nil {
			var refusal *Refusal
			require.ErrorAs(t, err, &refusal)
			return
		}
		require.Equal(t, key, IdentityKey(id.ID))
		require.Equal(t, string(value), id.Labels)
		// A cluster's identities name it and nobody else.
		if v.CheckIdentity(&id) == nil {
			cluster, ok := Label(id.Labels, LabelCluster)
			require.True(t, ok)
			require.Equal(t, "east", cluster)
		}
	})
}

func BenchmarkLabel(b *testing.B) {
	const list = "k8s:app=web;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;" +
		"k8s:io.cilium.k8s.policy.cluster=east;k8s:io.cilium.k8s.policy.serviceaccount=web;k8s:io.kubernetes.pod.namespace=shop;"
	b.ReportAllocs()
	for b.Loop() {
		Label(list, LabelNamespace)
	}
}

func TestClusterIDOf(t *testing.T) {
	for _, size := range []uint32{255, 511} {
		for id := range size + 1 {
			r := IdentityRangeFor(id, size)
			require.Equal(t, id, ClusterIDOf(r.Min, size))
			require.Equal(t, id, ClusterIDOf(r.Max, size))
		}
	}
}
