// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package follower

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

func TestArrivals(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	agents := [][]Arrival{{{Mark: 1, At: at}, {Mark: 1 << 63, At: at.Add(time.Nanosecond)}}, {}, {{Mark: 3, At: at}}}
	var raw bytes.Buffer
	for _, arrivals := range agents {
		require.NoError(t, writeArrivals(&raw, arrivals))
	}
	whole := raw.Bytes()
	var read [][]Arrival
	require.NoError(t, readArrivals(bytes.NewReader(whole), func(arrivals []Arrival) error {
		read = append(read, arrivals)
		return nil
	}))
	require.Equal(t, agents, read)

	nothing := func([]Arrival) error { return nil }
	require.ErrorIs(t, readArrivals(bytes.NewReader(whole[:len(whole)-1]), nothing), io.ErrUnexpectedEOF)
	stop := errors.New("stop")
	require.ErrorIs(t, readArrivals(bytes.NewReader(whole), func([]Arrival) error { return stop }), stop)
}

// TestMarks has whoever writes an object and whoever has its row agree.
func TestMarks(t *testing.T) {
	row := state.NewEndpoint(state.Claim{Origin: &state.Origin{}, Endpoint: wire.Endpoint{
		Prefix: netip.MustParsePrefix("10.0.0.1/32"), Namespace: "a", Pod: "pod", Identity: 300,
	}})
	object, mark, _ := endpointRow(row)
	require.Equal(t, EndpointObject("a", "pod"), object)
	require.Equal(t, EndpointMark("a", "pod", 300), mark)
	require.NotEqual(t, EndpointMark("a", "pod", 301), mark)
	require.NotEqual(t, object.Gone(), mark)

	one, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	both := ServiceMark("a", "service", []netip.Addr{one, other})
	require.Equal(t, both, ServiceMark("a", "service", []netip.Addr{other, one}), "backends have no order")
	require.NotEqual(t, both, ServiceMark("a", "service", []netip.Addr{one}))
	_, mark, counts := serviceRow(&state.Service{Service: &wire.Service{Namespace: "a", Name: "service"}})
	require.True(t, counts)
	require.Equal(t, ServiceMark("a", "service", nil), mark)
	_, _, counts = serviceRow(&state.Service{Service: &wire.Service{Namespace: namespaceOfAPIServer, Name: "kubernetes"}})
	require.False(t, counts, "it is the API server's own")
}
