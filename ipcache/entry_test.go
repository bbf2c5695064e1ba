// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net"
	"net/netip"
	"testing"
	"unsafe"

	upstream "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// bytesOf is the memory of a value: what the kernel gets.
func bytesOf[T any](value *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(value)), unsafe.Sizeof(*value))
}

func TestLayoutIsUpstreams(t *testing.T) {
	var (
		key    Key
		value  Value
		uKey   upstream.Key
		uValue upstream.RemoteEndpointInfo
	)
	require.Equal(t, unsafe.Sizeof(uKey), unsafe.Sizeof(key))
	require.EqualValues(t, keySize, unsafe.Sizeof(key))
	require.Equal(t, unsafe.Offsetof(uKey.Prefixlen), unsafe.Offsetof(key.PrefixLen))
	require.Equal(t, unsafe.Offsetof(uKey.ClusterID), unsafe.Offsetof(key.ClusterID))
	require.Equal(t, unsafe.Offsetof(uKey.Pad1), unsafe.Offsetof(key.Pad))
	require.Equal(t, unsafe.Offsetof(uKey.Family), unsafe.Offsetof(key.Family))
	require.Equal(t, unsafe.Offsetof(uKey.IP), unsafe.Offsetof(key.IP))

	require.Equal(t, unsafe.Sizeof(uValue), unsafe.Sizeof(value))
	require.EqualValues(t, valueSize, unsafe.Sizeof(value))
	require.Equal(t, unsafe.Offsetof(uValue.SecurityIdentity), unsafe.Offsetof(value.Identity))
	require.Equal(t, unsafe.Offsetof(uValue.TunnelEndpoint), unsafe.Offsetof(value.Tunnel))
	require.Equal(t, unsafe.Offsetof(uValue.Key), unsafe.Offsetof(value.EncryptKey))
	require.Equal(t, unsafe.Offsetof(uValue.Flags), unsafe.Offsetof(value.Flags))

	// Both are copied to the kernel as they are, so neither may have holes.
	require.EqualValues(t, 4+2+1+1+16, unsafe.Sizeof(key))
	require.EqualValues(t, 4+16+2+1+1, unsafe.Sizeof(value))
}

func TestMapSpecIsUpstreams(t *testing.T) {
	theirs, ours := upstream.NewMap(nil, upstream.Name), mapSpec(upstream.MaxEntries)
	require.Equal(t, theirs.Type(), ours.Type)
	require.Equal(t, theirs.KeySize(), ours.KeySize)
	require.Equal(t, theirs.ValueSize(), ours.ValueSize)
	require.Equal(t, theirs.MaxEntries(), ours.MaxEntries)
	require.Equal(t, theirs.Flags(), ours.Flags)
	// Upstream's own map is never mistaken for ours, nor its pin.
	require.NotEqual(t, upstream.Name, pinName)
	require.NotEqual(t, upstream.Name[:15], mapName)
}

func TestFlagsAreUpstreams(t *testing.T) {
	require.EqualValues(t, upstream.FlagSkipTunnel, FlagSkipTunnel)
	require.EqualValues(t, upstream.FlagHasTunnelEndpoint, FlagHasTunnel)
	require.EqualValues(t, upstream.FlagIPv6TunnelEndpoint, FlagIPv6Tunnel)
	require.EqualValues(t, upstream.FlagRemoteCluster, FlagRemoteCluster)
	for f := range Flags(1 << 4) {
		require.Equal(t, upstream.RemoteEndpointInfoFlags(f).String(), f.String())
	}
}

func genAddr(t *rapid.T, name string) netip.Addr {
	if rapid.Bool().Draw(t, name+" is IPv4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	ip := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
	return ip.Unmap()
}

func genPrefix(t *rapid.T) netip.Prefix {
	ip := genAddr(t, "address")
	return netip.PrefixFrom(ip, rapid.IntRange(0, ip.BitLen()).Draw(t, "length")).Masked()
}

func TestKeysAndValuesAreUpstreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := genPrefix(t)
		ours, ok := NewKey(prefix)
		require.True(t, ok)
		mask := net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())
		theirs := upstream.NewKey(prefix.Addr().AsSlice(), mask, 0)
		require.Equal(t, bytesOf(&theirs), bytesOf(&ours))
		require.Equal(t, prefix, ours.Prefix())
		require.Equal(t, theirs.String(), ours.String())

		var tunnel netip.Addr
		var tunnelIP net.IP
		if rapid.Bool().Draw(t, "has a tunnel") {
			tunnel = genAddr(t, "tunnel")
			tunnelIP = tunnel.AsSlice()
		}
		identity := rapid.Uint32().Draw(t, "identity")
		encryptKey := rapid.Byte().Draw(t, "key")
		flags := rapid.Byte().Draw(t, "flags") & uint8(FlagSkipTunnel|FlagRemoteCluster)
		value := NewValue(identity, tunnel, encryptKey, Flags(flags))
		theirValue := upstream.NewValue(identity, tunnelIP, encryptKey, upstream.RemoteEndpointInfoFlags(flags))
		require.Equal(t, bytesOf(&theirValue), bytesOf(&value))
		require.Equal(t, theirValue.String(), value.String())
	})
}

func TestNewKeyTakesPrefixesAsTheyAre(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"10.1.2.3/32", "10.1.2.3/32"},
		{"10.1.2.3/8", "10.0.0.0/8"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"::/0", "::/0"},
		{"fd00::1/64", "fd00::/64"},
		{"::ffff:10.1.2.3/128", "10.1.2.3/32"},
		{"::ffff:10.1.2.3/104", "10.0.0.0/8"},
		{"::ffff:10.1.2.3/64", ""},
	} {
		key, ok := NewKey(netip.MustParsePrefix(test.in))
		require.Equal(t, test.want != "", ok, test.in)
		if ok {
			require.Equal(t, test.want, key.Prefix().String(), test.in)
		}
	}
	_, ok := NewKey(netip.Prefix{})
	require.False(t, ok)
}
