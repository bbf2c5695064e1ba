// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func remoteCIDR(cluster string, id uint32, prefix string) cidrClaim {
	return cidrClaim{netip.MustParsePrefix(prefix), cluster, id, byRemote}
}

func requireOwner(t require.TestingT, o *ownership, addr, cluster string) {
	c, ok := o.owner(netip.MustParseAddr(addr))
	if cluster == "" {
		require.False(t, ok, "%s is %s's", addr, c.cluster)
		return
	}
	require.True(t, ok, addr)
	require.Equal(t, cluster, c.cluster, addr)
}

func TestCIDRs(t *testing.T) {
	local := cidrClaim{netip.MustParsePrefix("10.0.0.0/16"), "home", 1, byLocal}
	red, blue := remoteCIDR("red", 2, "10.2.0.0/24"), remoteCIDR("blue", 3, "10.3.0.0/24")

	t.Run("each its own", func(t *testing.T) {
		o := decide([]cidrClaim{blue, local, red, remoteCIDR("red", 2, "fd02::/64")})
		requireOwner(t, o, "10.2.0.9", "red")
		requireOwner(t, o, "10.3.0.255", "blue")
		requireOwner(t, o, "fd02::1", "red")
		requireOwner(t, o, "10.0.1.1", "home")
		requireOwner(t, o, "10.2.1.0", "")
		require.Empty(t, o.refused)
		require.Equal(t, map[netip.Prefix]uint32{
			red.prefix: 2, blue.prefix: 3, netip.MustParsePrefix("fd02::/64"): 2}, o.remote())
	})
	t.Run("of two clusters none", func(t *testing.T) {
		wide := remoteCIDR("blue", 3, "10.2.0.0/16")
		o := decide([]cidrClaim{red, wide, blue})
		requireOwner(t, o, "10.2.0.9", "")
		requireOwner(t, o, "10.2.9.9", "")
		requireOwner(t, o, "10.3.0.9", "blue")
		require.Equal(t, []CIDR{{wide.prefix, "blue", red.prefix, "red"}, {red.prefix, "red", wide.prefix, "blue"}}, o.refused)
		require.Empty(t, decide([]cidrClaim{red, blue}).refused, "released when the overlap goes")
	})
	t.Run("what is ours stands", func(t *testing.T) {
		o := decide([]cidrClaim{local, remoteCIDR("red", 2, "10.0.7.0/24"), blue})
		requireOwner(t, o, "10.0.7.1", "home")
		require.Equal(t, []CIDR{{netip.MustParsePrefix("10.0.7.0/24"), "red", local.prefix, "home"}}, o.refused)
		require.Equal(t, map[netip.Prefix]uint32{blue.prefix: 3}, o.remote())
	})
	t.Run("who claims everything harms himself alone", func(t *testing.T) {
		o := decide([]cidrClaim{local, remoteCIDR("red", 2, "0.0.0.0/0"), blue})
		requireOwner(t, o, "10.3.0.1", "blue")
		require.Len(t, o.refused, 1)
	})
	t.Run("the operator's word counts for more", func(t *testing.T) {
		o := decide([]cidrClaim{{netip.MustParsePrefix("10.3.0.0/16"), "blue", 3, byFlag}, remoteCIDR("red", 2, "10.3.7.0/24"), blue})
		requireOwner(t, o, "10.3.7.1", "blue")
		require.Len(t, o.refused, 1)
	})
	t.Run("within one cluster nothing overlaps", func(t *testing.T) {
		o := decide([]cidrClaim{red, remoteCIDR("red", 2, "10.2.0.0/16"), remoteCIDR("red", 2, "10.2.0.128/25")})
		requireOwner(t, o, "10.2.0.200", "red")
		require.Empty(t, o.refused)
		require.Equal(t, map[netip.Prefix]uint32{netip.MustParsePrefix("10.2.0.0/16"): 2}, o.remote())
	})
	t.Run("what isn't for pods is nobody's", func(t *testing.T) {
		for _, prefix := range []string{"127.0.0.0/16", "169.254.7.0/24", "224.0.0.0/8", "::1/128", "fe80::/64", "ff02::/16"} {
			o := decide([]cidrClaim{remoteCIDR("red", 2, prefix), blue})
			requireOwner(t, o, netip.MustParsePrefix(prefix).Addr().String(), "")
			require.Equal(t, map[netip.Prefix]uint32{blue.prefix: 3}, o.remote())
			require.Len(t, o.refused, 1)
			require.Contains(t, o.refused[0].String(), "isn't for pods")
		}
	})
	t.Run("a new ID is another cluster", func(t *testing.T) {
		o := decide([]cidrClaim{red, remoteCIDR("red", 9, "10.2.0.0/24")})
		requireOwner(t, o, "10.2.0.1", "")
	})
}

// standing says by comparing each with each which claims stand.
func standing(claims []cidrClaim) (stand []cidrClaim) {
	for level := byLocal; level <= byRemote; level++ {
		rival := func(c, o cidrClaim) bool { return !c.sameCluster(o) && c.prefix.Overlaps(o.prefix) }
		candidates := slices.DeleteFunc(slices.Clone(claims), func(c cidrClaim) bool {
			_, reserved := isForNoPods(c.prefix)
			return c.trust != level || level == byRemote && reserved || slices.ContainsFunc(stand, func(o cidrClaim) bool { return rival(c, o) })
		})
		for _, c := range candidates {
			if level == byLocal || !slices.ContainsFunc(candidates, func(o cidrClaim) bool { return rival(c, o) }) {
				stand = append(stand, c)
			}
		}
	}
	return stand
}

// TestCIDRsFollowTheModel draws from few addresses and many lengths, so that most
// overlap something.
func TestCIDRsFollowTheModel(t *testing.T) {
	clusters := []string{"home", "red", "blue", "green"}
	rapid.Check(t, func(t *rapid.T) {
		claims := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) cidrClaim {
			addr := netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "b") & 0xc1, rapid.Byte().Draw(t, "c") & 0x81, 0})
			if rapid.IntRange(0, 4).Draw(t, "six") == 0 {
				addr = netip.AddrFrom16([16]byte{0xfd, 15: rapid.Byte().Draw(t, "d") & 0x81})
			}
			prefix := netip.PrefixFrom(addr, rapid.IntRange(0, addr.BitLen()).Draw(t, "bits")).Masked()
			if rapid.Bool().Draw(t, "narrow") {
				prefix = netip.PrefixFrom(addr, addr.BitLen()-8).Masked()
			}
			i := rapid.IntRange(0, 3).Draw(t, "cluster")
			if i == 0 {
				return cidrClaim{prefix, "home", 1, byLocal}
			}
			return cidrClaim{prefix, clusters[i], uint32(i + 1), rapid.SampledFrom([]trust{byFlag, byRemote, byRemote}).Draw(t, "trust")}
		}), 0, 24).Draw(t, "claims")
		o := decide(claims)
		stand := standing(claims)

		for i, c := range o.owned {
			if i > 0 {
				require.False(t, c.prefix.Overlaps(o.owned[i-1].prefix))
			}
		}
		for _, c := range claims {
			for _, addr := range []netip.Addr{c.prefix.Addr(), lastOf(c.prefix)} {
				want := slices.IndexFunc(stand, func(s cidrClaim) bool { return s.prefix.Contains(addr) })
				got, ok := o.owner(addr)
				require.Equal(t, want >= 0, ok, addr)
				if ok {
					require.True(t, got.sameCluster(stand[want]))
				}
			}
			refused := slices.ContainsFunc(o.refused, func(r CIDR) bool { return r.Prefix == c.prefix && r.Cluster == c.cluster })
			if !slices.Contains(stand, c) {
				require.True(t, refused, "%v is neither used nor reported", c)
			}
		}
		for _, r := range o.refused {
			require.True(t, r.Prefix.Overlaps(r.Overlaps))
			require.NotEqual(t, r.Cluster, r.With)
		}
		rand.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
		again := decide(claims)
		require.Equal(t, o.remote(), again.remote())
		require.Equal(t, len(o.refused), len(again.refused))
	})
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	from := p.Bits()
	if p.Addr().Is4() {
		from += 96
	}
	for i := from; i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return addr.Unmap()
	}
	return addr
}

// BenchmarkDecide has what 510 clusters of 100 nodes claim.
func BenchmarkDecide(b *testing.B) {
	var claims []cidrClaim
	for cluster := range 510 {
		for node := range 100 {
			addr := netip.AddrFrom4([4]byte{10 + byte(cluster>>8), byte(cluster), byte(node), 0})
			claims = append(claims, cidrClaim{netip.PrefixFrom(addr, 24), "c" + string(rune(cluster)), uint32(cluster), byRemote})
		}
	}
	for b.Loop() {
		decide(claims)
	}
}
