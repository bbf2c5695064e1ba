// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// endpointOf is an endpoint whose pod's name tells one value from another.
func endpointOf(address string, identity uint32, pod string) wire.Endpoint {
	addr := netip.MustParseAddr(address)
	return wire.Endpoint{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Identity: identity, Pod: pod}
}

func TestHeldBackNeedsNoIdentity(t *testing.T) {
	h := newHeldBack(time.Second, 10)
	for _, identity := range []uint32{0, 1, 2, 255, localScope, localScope | 1, 2 << 24} {
		ep := endpointOf("10.0.0.1", identity, "a")
		require.Equal(t, takeNow, h.offer(&ep, time.Time{}), "identity %d", identity)
	}
	for _, identity := range []uint32{256, 65536, localScope - 1} {
		ep := endpointOf("10.0.0.1", identity, "a")
		require.Equal(t, wait, h.offer(&ep, time.Time{}), "identity %d", identity)
	}
}

func TestHeldBackReleases(t *testing.T) {
	h := newHeldBack(time.Second, 10)
	a, b := endpointOf("10.0.0.1", 256, "a"), endpointOf("10.0.0.2", 256, "b")
	other := endpointOf("10.0.0.3", 257, "other")
	for _, ep := range []*wire.Endpoint{&a, &b, &other} {
		require.Equal(t, wait, h.offer(ep, time.Time{}))
	}
	require.ElementsMatch(t, []wire.Endpoint{a, b}, h.identityKnown(256, nil))
	require.Equal(t, 1, h.len())
	require.Equal(t, takeNow, h.offer(&a, time.Time{}))

	h.identityGone(256)
	require.Equal(t, wait, h.offer(&a, time.Time{}))
}

func TestHeldBackKeepsFirstDeadline(t *testing.T) {
	h := newHeldBack(10*time.Second, 10)
	start := time.Unix(1000, 0)
	var last wire.Endpoint
	for i := range 9 {
		last = endpointOf("10.0.0.1", uint32(256+i), fmt.Sprint(i))
		require.Equal(t, wait, h.offer(&last, start.Add(time.Duration(i)*time.Second)))
		require.Empty(t, h.expire(start.Add(time.Duration(i)*time.Second), nil))
	}
	require.Empty(t, h.identityKnown(256, nil), "it waits for its latest identity only")
	require.Equal(t, []wire.Endpoint{last}, h.expire(start.Add(10*time.Second), nil))
	require.Zero(t, h.len())
}

func TestHeldBackLimit(t *testing.T) {
	h := newHeldBack(time.Second, 2)
	a, b, c := endpointOf("10.0.0.1", 256, "a"), endpointOf("10.0.0.2", 256, "b"), endpointOf("10.0.0.3", 256, "c")
	require.Equal(t, wait, h.offer(&a, time.Time{}))
	require.Equal(t, wait, h.offer(&b, time.Time{}))
	require.Equal(t, takeLate, h.offer(&c, time.Time{}))
	// One that waits already may still change.
	require.Equal(t, wait, h.offer(&a, time.Time{}))
	h.forget(a.Prefix)
	require.Equal(t, wait, h.offer(&c, time.Time{}))
}

// TestHeldBackEqualsOrderFree plays two streams, each in its own order, in a
// random interleaving with time passing, and compares what came through with
// the last value of each address.
func TestHeldBackEqualsOrderFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const timeout = 10 * time.Second
		limit := rapid.IntRange(0, 6).Draw(t, "limit")
		h := newHeldBack(timeout, limit)
		now := time.Unix(1000, 0)
		var (
			want, got = map[netip.Prefix]wire.Endpoint{}, map[netip.Prefix]wire.Endpoint{}
			known     = map[uint32]bool{}
			since     = map[netip.Prefix]time.Time{}
		)
		took := func(eps []wire.Endpoint) {
			for _, ep := range eps {
				got[ep.Prefix] = ep
				delete(since, ep.Prefix)
			}
		}
		address := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 8).Draw(t, "host"))
		})
		identity := rapid.Uint32Range(254, 259)
		step := 0
		t.Repeat(map[string]func(*rapid.T){
			"endpoint": func(t *rapid.T) {
				step++
				ep := endpointOf(address.Draw(t, "address"), identity.Draw(t, "identity"), fmt.Sprint(step))
				want[ep.Prefix] = ep
				full := h.len() >= limit
				_, waiting := since[ep.Prefix]
				switch needs := ep.Identity >= 256 && !known[ep.Identity]; h.offer(&ep, now) {
				case takeNow:
					require.False(t, needs)
					took([]wire.Endpoint{ep})
				case takeLate:
					require.True(t, needs && full && !waiting)
					took([]wire.Endpoint{ep})
				case wait:
					require.True(t, needs && (waiting || !full))
					if !waiting {
						since[ep.Prefix] = now
					}
				}
			},
			"delete": func(t *rapid.T) {
				prefix := endpointOf(address.Draw(t, "address"), 0, "").Prefix
				h.forget(prefix)
				delete(want, prefix)
				delete(got, prefix)
				delete(since, prefix)
			},
			"identity": func(t *rapid.T) {
				id := identity.Draw(t, "identity")
				known[id] = true
				took(h.identityKnown(id, nil))
			},
			"identity deleted": func(t *rapid.T) {
				id := identity.Draw(t, "identity")
				h.identityGone(id)
				delete(known, id)
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 12).Draw(t, "seconds")) * time.Second)
				took(h.expire(now, nil))
			},
			"": func(t *rapid.T) {
				require.LessOrEqual(t, h.len(), limit)
				require.Len(t, since, h.len())
				oldest, any := time.Time{}, false
				for prefix, start := range since {
					require.Less(t, now.Sub(start), timeout, "%s waits for too long", prefix)
					require.False(t, known[want[prefix].Identity], "%s waits for what is known", prefix)
					if !any || start.Before(oldest) {
						oldest, any = start, true
					}
				}
				next, ok := h.next()
				require.Equal(t, any, ok)
				if ok {
					require.Equal(t, oldest.Add(timeout), next)
				}
				for prefix, ep := range want {
					if _, waits := since[prefix]; !waits {
						require.Equal(t, ep, got[prefix])
					}
				}
			},
		})
		took(h.expire(now.Add(timeout), nil))
		require.Equal(t, want, got)
		require.Zero(t, h.len())
		require.Empty(t, h.byPrefix)
		require.Empty(t, h.byIdentity)
	})
}
