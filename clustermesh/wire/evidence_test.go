// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAbsence: nothing is absent of an etcd that isn't known to have everything.
func TestAbsence(t *testing.T) {
	lookup := EndpointLookup("amber", netip.MustParseAddr("10.1.0.7"))
	require.Equal(t, []string{"cilium/cluster-config/amber", "cilium/synced/amber/cilium/state/ip/v1"}, lookup.EvidenceKeys(false))
	require.Equal(t, []string{"cilium/cluster-config/amber", "cilium/synced/amber/cilium/cache/identities/v1"},
		IdentityLookup("amber", 65540).EvidenceKeys(true))

	config, canary := []byte(`{"id":1,"capabilities":{"syncedCanaries":true}}`), []byte("2026-03-01T12:00:00Z")
	connected, err := ParseClusterConfig(config)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		evidence [][]byte
		err      string
	}{
		"complete":           {[][]byte{config, canary}, ""},
		"an empty canary":    {[][]byte{config, {}}, ""},
		"no canaries at all": {[][]byte{[]byte(`{"id":1}`), nil}, ""},
		"no canary":          {[][]byte{config, nil}, `"amber" doesn't say that all of its endpoints are there`},
		"empty":              {[][]byte{nil, nil}, "configuration not found"},
		"no config":          {[][]byte{nil, canary}, "configuration not found"},
		"junk":               {[][]byte{[]byte("{"), canary}, "decoding cluster configuration"},
		"another ID":         {[][]byte{[]byte(`{"id":2}`), canary}, "has the ID 2 by now, not 1"},
		"another layout":     {[][]byte{[]byte(`{"id":1,"capabilities":{"cached":true}}`), canary}, "another layout"},
		"no evidence":        {nil, "0 values of evidence"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, raw := range [][]byte{config, nil} {
				err := lookup.CheckAbsence(connected, raw, c.evidence)
				if c.err == "" {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, ErrIncomplete)
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

func TestAsks(t *testing.T) {
	lookups := []Lookup{
		EndpointLookup("amber", netip.MustParseAddr("10.1.0.1")), EndpointLookup("amber", netip.MustParseAddr("10.1.0.2")),
		EndpointLookup("basil", netip.MustParseAddr("10.2.0.1")), IdentityLookup("basil", 65540),
	}
	for _, cached := range []bool{false, true} {
		for i, keys := range Asks(lookups, cached) {
			require.Equal(t, append(lookups[i].SourceKeys(cached), lookups[i].EvidenceKeys(cached)...), keys)
		}
	}
	require.Empty(t, Asks(nil, false))
}
