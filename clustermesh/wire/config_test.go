// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"testing"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func clusterConfig() *rapid.Generator[ClusterConfig] {
	return rapid.Custom(func(t *rapid.T) ClusterConfig {
		c := ClusterConfig{
			ID: rapid.Uint32Range(0, 600).Draw(t, "ID"),
			Capabilities: Capabilities{
				SyncedCanaries:       rapid.Bool().Draw(t, "canaries"),
				Cached:               rapid.Bool().Draw(t, "cached"),
				MaxConnectedClusters: rapid.SampledFrom([]uint32{0, 255, 511, 1000}).Draw(t, "max"),
			},
			Region: plainText().Draw(t, "region"),
		}
		if rapid.Bool().Draw(t, "knows exports") {
			on := rapid.Bool().Draw(t, "exports")
			c.Capabilities.ServiceExportsEnabled = &on
		}
		return c
	})
}

func TestClusterConfigAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clusterConfig().Draw(t, "config")
		got, err := MarshalClusterConfig(c)
		require.NoError(t, err)
		back, err := ParseClusterConfig(got)
		require.NoError(t, err)
		require.Equal(t, c, back)

		theirs := cmtypes.CiliumClusterConfig{ID: c.ID, Capabilities: c.Capabilities}
		var read cmtypes.CiliumClusterConfig
		require.NoError(t, json.Unmarshal(got, &read))
		require.Equal(t, theirs, read)

		c.Region = ""
		got, err = MarshalClusterConfig(c)
		require.NoError(t, err)
		want, err := json.Marshal(theirs)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	})
}

func TestClusterConfigGolden(t *testing.T) {
	off := false
	got, err := MarshalClusterConfig(ClusterConfig{
		ID: 7, Region: "eu-west",
		Capabilities: Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255, ServiceExportsEnabled: &off},
	})
	require.NoError(t, err)
	require.Equal(t, `{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,`+
		`"serviceExportsEnabled":false},"region":"eu-west"}`, string(got))
}

func TestParseClusterConfigErrors(t *testing.T) {
	_, err := ParseClusterConfig(nil)
	require.ErrorIs(t, err, ErrNoClusterConfig)
	for _, raw := range []string{`{`, `[]`, `"x"`, `{"id":-1}`, `{"id":"7"}`, `{"capabilities":[]}`, `{"region":7}`} {
		_, err = ParseClusterConfig([]byte(raw))
		require.Error(t, err, raw)
		require.NotErrorIs(t, err, ErrNoClusterConfig)
	}
}

func TestCachedClusterConfig(t *testing.T) {
	for name, tc := range map[string]struct{ raw, want string }{
		"as upstream writes it": {
			`{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`,
			`{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"cached":true}}`,
		},
		"already cached": {
			`{"id":7,"capabilities":{"syncedCanaries":true,"cached":true}}`,
			`{"id":7,"capabilities":{"syncedCanaries":true,"cached":true}}`,
		},
		"said to be uncached": {
			`{"id":7,"capabilities":{"cached":false,"syncedCanaries":false}}`,
			`{"id":7,"capabilities":{"cached":true,"syncedCanaries":true}}`,
		},
		"unknown fields, large numbers, order": {
			`{"z":12345678901234567890,"id":7,"capabilities":{"endpointSlices":{"v":[1.50]},"x":null},"region":"eu","a":[{}]}`,
			`{"z":12345678901234567890,"id":7,"capabilities":{"endpointSlices":{"v":[1.50]},"x":null,"cached":true,"syncedCanaries":true},"region":"eu","a":[{}]}`,
		},
		"no capabilities": {
			`{"id":7}`,
			`{"id":7,"capabilities":{"cached":true,"syncedCanaries":true}}`,
		},
		"empty": {`{}`, `{"capabilities":{"cached":true,"syncedCanaries":true}}`},
	} {
		t.Run(name, func(t *testing.T) {
			raw := []byte(tc.raw)
			got, err := CachedClusterConfig(raw)
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
			require.Equal(t, tc.raw, string(raw), "raw must not be modified")
		})
	}
	for _, raw := range []string{"", "null", " null", "{", `[]`, `7`,
		`{"capabilities":{},"capabilities":{"cached":false}}`,
		`{"capabilities":{},"Capabilities":{"cached":false}}`,
		`{"capabilities":{"cached":true,"CACHED":false}}`,
	} {
		_, err := CachedClusterConfig([]byte(raw))
		require.Error(t, err, raw)
	}
}

// Upstream's answer depends on a global, which is set for it here.
func TestValidateClusterConfigAsUpstream(t *testing.T) {
	before := cmtypes.ClusterIDMax
	t.Cleanup(func() { cmtypes.ClusterIDMax = before })
	for _, size := range []uint32{255, 511} {
		local := ClusterInfo{ID: 1, Name: "east", MaxConnectedClusters: size}
		require.NoError(t, local.InitClusterIDMax())
		for _, id := range []uint32{0, 1, 2, 255, 256, 511, 512, 1<<32 - 1} {
			for _, theirs := range []uint32{0, 255, 511} {
				c := ClusterConfig{ID: id, Capabilities: Capabilities{MaxConnectedClusters: theirs}}
				want := local.ValidateRemoteConfig(cmtypes.CiliumClusterConfig{ID: id, Capabilities: c.Capabilities})
				got := ValidateClusterConfig(local, c)
				require.Equal(t, want == nil, got == nil, "%d of %d, theirs %d: %v, %v", id, size, theirs, want, got)
			}
		}
	}
}

func FuzzClusterConfig(f *testing.F) {
	f.Add([]byte(`{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255},"region":"eu","x":[1]}`))
	f.Add([]byte(` {"capabilities":null}`))
	f.Add([]byte(`{"capabilities":{"cached":true},"capabilities":{"cached":false},"":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		c, err := ParseClusterConfig(raw)
		if err != nil {
			_, err = CachedClusterConfig(raw)
			require.Error(t, err)
			return
		}
		value, err := MarshalClusterConfig(c)
		require.NoError(t, err)
		back, err := ParseClusterConfig(value)
		require.NoError(t, err)
		require.Equal(t, c, back)

		out, err := CachedClusterConfig(raw)
		require.Equal(t, before, raw)
		if err != nil {
			return
		}
		require.True(t, json.Valid(out))
		got, err := ParseClusterConfig(out)
		require.NoError(t, err)
		c.Capabilities.Cached, c.Capabilities.SyncedCanaries = true, true
		require.Equal(t, c, got)
		require.Equal(t, unknownFields(t, raw), unknownFields(t, out))
	})
}

// unknownFields is a config without what CachedClusterConfig may change.
func unknownFields(t *testing.T, raw []byte) map[string]any {
	var fields map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&fields))
	capabilities, _ := fields["capabilities"].(map[string]any)
	delete(capabilities, "cached")
	delete(capabilities, "syncedCanaries")
	if len(capabilities) == 0 {
		delete(fields, "capabilities")
	}
	return fields
}

// As TestValidateClusterConfigAsUpstream, for our own cluster.
func TestValidateLocalClusterAsUpstream(t *testing.T) {
	before := cmtypes.ClusterIDMax
	t.Cleanup(func() { cmtypes.ClusterIDMax = before })
	for _, size := range []uint32{0, 254, 255, 256, 511, 512} {
		for _, id := range []uint32{0, 1, 255, 256, 511, 512} {
			for _, name := range []string{"", "default", "east", "-east", "East", "a-name-of-more-than-32-characters"} {
				c := ClusterInfo{ID: id, Name: name, MaxConnectedClusters: size}
				want := c.InitClusterIDMax()
				if want == nil {
					want = c.ValidateStrict()
				}
				got := ValidateLocalCluster(c)
				require.Equal(t, want == nil, got == nil, "%+v: %v, %v", c, want, got)
			}
		}
	}
}
