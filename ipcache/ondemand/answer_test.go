// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
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
			results := answerBy(t.Context(), []Question{{Cluster: "amber", ClusterID: 1, Addr: addr, Identity: c.named}}, c.known,
				func(_ context.Context, lookups []wire.Lookup) []looked {
					var keys []string
					var values []looked
					for _, lookup := range lookups {
						keys = append(keys, lookup.Key)
						if lookup.Resource == wire.Endpoints {
							values = append(values, looked{value: value})
						} else {
							values = append(values, looked{value: []byte("k8s:a=b;")})
						}
					}
					asked = append(asked, keys)
					return values
				})
			require.NoError(t, results[0].Err)
			require.EqualValues(t, ofEndpoint, results[0].Answer.Endpoint.Identity)
			require.Equal(t, c.asked, asked)
		})
	}
}

// TestAnswersEachByItself: of several questions one may be refused, another not be
// answered and the next know nothing.
func TestAnswersEachByItself(t *testing.T) {
	away := fmt.Errorf("%w: away", ErrUnavailable)
	values := map[string]looked{
		"10.1.0.1": {value: make([]byte, wire.MaxLookupBytes+1)}, // fills memory, whoever has passed it on
		"10.1.0.2": {err: away},
		"10.1.0.4": {value: []byte(`{"IP":"10.1.0.4","HostIP":"192.0.2.1","ID":65540}`)},
		"10.1.0.5": {value: []byte(`{"IP":"10.1.0.5","HostIP":"192.0.2.1","ID":65541}`)},
		"65541":    {err: away},
	}
	var questions []Question
	for n := range 5 {
		questions = append(questions, Question{Cluster: "amber", ClusterID: 1, Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(n + 1)})})
	}
	results := answerBy(t.Context(), questions, nil, func(_ context.Context, lookups []wire.Lookup) (all []looked) {
		for _, lookup := range lookups {
			all = append(all, values[lookup.Key])
		}
		return all
	})
	require.ErrorIs(t, results[0].Err, ErrRefused)
	require.ErrorContains(t, results[0].Err, `endpoints "10.1.0.1": too-large`)
	require.ErrorIs(t, results[1].Err, away)
	require.ErrorIs(t, results[2].Err, ErrNotFound)
	require.NoError(t, results[3].Err)
	require.EqualValues(t, 65540, results[3].Answer.Endpoint.Identity)
	require.ErrorIs(t, results[4].Err, away)
	require.Nil(t, results[4].Answer.Endpoint)
}
