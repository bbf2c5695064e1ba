// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestAsksForWhatIsUnknown: of an identity whose labels are known nobody is asked, and
// the one that a packet has named is asked for along with the endpoint.
func TestAsksForWhatIsUnknown(t *testing.T) {
	const (
		ofEndpoint = 65540
		ofPacket   = 65541
	)
	addr := netip.MustParseAddr("10.1.0.7")
	value, err := wire.MarshalEndpoint(&wire.Endpoint{Prefix: netip.PrefixFrom(addr, 32), Identity: ofEndpoint, HostIP: netip.MustParseAddr("192.0.2.1")})
	require.NoError(t, err)
	for _, c := range []struct {
		name  string
		named uint32
		known func(uint32) bool
		asked [][]string
	}{
		{"nothing known", 0, nil, [][]string{{"10.1.0.7"}, {"65540"}}},
		{"known", 0, func(id uint32) bool { return id == ofEndpoint }, [][]string{{"10.1.0.7"}}},
		{"another known", 0, func(id uint32) bool { return id == ofPacket }, [][]string{{"10.1.0.7"}, {"65540"}}},
		{"named", ofEndpoint, nil, [][]string{{"10.1.0.7", "65540"}}},
		{"named another", ofPacket, nil, [][]string{{"10.1.0.7", "65541"}, {"65540"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked [][]string
			answer, err := answerBy(t.Context(), Question{Cluster: "amber", ClusterID: 1, Addr: addr, Identity: c.named}, c.known,
				func(_ context.Context, lookups ...wire.Lookup) ([][]byte, error) {
					var keys []string
					var values [][]byte
					for _, lookup := range lookups {
						keys = append(keys, lookup.Key)
						if lookup.Resource == wire.Endpoints {
							values = append(values, value)
						} else {
							values = append(values, []byte("k8s:a=b;"))
						}
					}
					asked = append(asked, keys)
					return values, nil
				})
			require.NoError(t, err)
			require.EqualValues(t, ofEndpoint, answer.Endpoint.Identity)
			require.Equal(t, c.asked, asked)
		})
	}
}

// TestTooLarge: what fills memory is refused by name, whoever has passed it on.
func TestTooLarge(t *testing.T) {
	addr := netip.MustParseAddr("10.1.0.7")
	_, err := answerBy(t.Context(), Question{Cluster: "amber", ClusterID: 1, Addr: addr}, nil,
		func(context.Context, ...wire.Lookup) ([][]byte, error) {
			return [][]byte{make([]byte, wire.MaxLookupBytes+1)}, nil
		})
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, `endpoints "10.1.0.7": too-large`)
}
