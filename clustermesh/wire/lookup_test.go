// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadThroughKey(t *testing.T) {
	for _, c := range []struct {
		lookup  Lookup
		key     string
		sources []string
	}{
		{
			EndpointLookup("amber", netip.MustParseAddr("10.1.0.7")),
			"cilium/state/ondemand/ip/v1/amber/10.1.0.7",
			[]string{"cilium/state/ip/v1/default/10.1.0.7", "cilium/state/ondemand/ip/v1/default/10.1.0.7"},
		},
		{
			EndpointLookup("amber", netip.MustParseAddr("fd00::7")),
			"cilium/state/ondemand/ip/v1/amber/fd00::7",
			[]string{"cilium/state/ip/v1/default/fd00::7", "cilium/state/ondemand/ip/v1/default/fd00::7"},
		},
		{
			IdentityLookup("amber", 65537),
			"cilium/state/ondemand/identities/v1/amber/id/65537",
			[]string{"cilium/state/identities/v1/id/65537", "cilium/state/ondemand/identities/v1/id/65537"},
		},
	} {
		require.Equal(t, c.key, c.lookup.ReadThroughKey())
		parsed, err := ParseReadThroughKey(c.key)
		require.NoError(t, err)
		require.Equal(t, c.lookup, parsed)
		require.Equal(t, c.sources, c.lookup.SourceKeys(false))
		require.Len(t, c.lookup.SourceKeys(true), 1)
	}
	require.Equal(t, []string{"cilium/cache/ip/v1/amber/10.1.0.7"},
		EndpointLookup("amber", netip.MustParseAddr("::ffff:10.1.0.7")).SourceKeys(true))
	require.Equal(t, []string{"cilium/cache/identities/v1/amber/id/9"}, IdentityLookup("amber", 9).SourceKeys(true))
}

func TestReadThroughKeyRefused(t *testing.T) {
	for _, key := range []string{
		"",
		"cilium/state/ip/v1/default/10.1.0.7",
		"cilium/state/ondemand/",
		"cilium/state/ondemand/ip/v1/amber",
		"cilium/state/ondemand/ip/v1/amber/",
		"cilium/state/ondemand/ip/v1//10.1.0.7",
		"cilium/state/ondemand/ip/v1/amber/10.1.0.0/24",
		"cilium/state/ondemand/ip/v1/amber/x",
		"cilium/state/ondemand/identities/v1/amber/65537",
		"cilium/state/ondemand/identities/v1/amber/id/0",
		"cilium/state/ondemand/identities/v1/amber/id/",
		"cilium/state/ondemand/identities/v1//id/7",
	} {
		_, err := ParseReadThroughKey(key)
		var refusal *Refusal
		require.ErrorAs(t, err, &refusal, key)
		require.Equal(t, ReasonBadKey, refusal.Reason, key)
	}
}
