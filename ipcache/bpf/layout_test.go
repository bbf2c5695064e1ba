// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache"
)

// offsets are those of a struct's members, in bytes, as an object has them.
func offsets(t *testing.T, spec *ebpf.CollectionSpec, name string) (map[string]uint32, uint32) {
	t.Helper()
	var s *btf.Struct
	require.NoError(t, spec.Types.TypeByName(name, &s))
	all := map[string]uint32{}
	for _, member := range s.Members {
		all[member.Name] = member.Offset.Bytes()
	}
	return all, s.Size
}

// TestLayouts: the objects for both byte orders, and what Go makes of their structs.
func TestLayouts(t *testing.T) {
	spec, err := loadMiss()
	require.NoError(t, err)
	for _, object := range []string{"miss_bpfel.o", "miss_bpfeb.o"} {
		other, err := ebpf.LoadCollectionSpec(object)
		require.NoError(t, err)
		for _, name := range []string{"ipcache_miss", "ipcache_key", "ipcache_value", "signal_key", "bucket_key", "verdict", "counters"} {
			want, wantSize := offsets(t, spec, name)
			got, size := offsets(t, other, name)
			require.Equal(t, want, got, "%s in %s", name, object)
			require.Equal(t, wantSize, size, "%s in %s", name, object)
		}
	}

	t.Run("signal", func(t *testing.T) {
		at, size := offsets(t, spec, "ipcache_miss")
		require.Zero(t, at["signal_nr"], "whoever reads a signal looks there first")
		raw := make([]byte, size)
		binary.NativeEndian.PutUint32(raw[at["signal_nr"]:], SignalIPCacheMiss)
		binary.NativeEndian.PutUint32(raw[at["cluster_id"]:], 7)
		binary.NativeEndian.PutUint32(raw[at["identity"]:], 458753)
		binary.NativeEndian.PutUint32(raw[at["ifindex"]:], 12)
		binary.NativeEndian.PutUint64(raw[at["time"]:], 1234567890123)
		raw[at["side"]] = byte(SideSource)
		want := Miss{
			Identity: 458753, ClusterID: 7, Side: SideSource, Interface: 12, Time: 1234567890123 * time.Nanosecond,
		}
		for addr, family := range map[string]byte{"10.7.0.9": 1, "fd00:7::9": 2} {
			want.Addr = netip.MustParseAddr(addr)
			ip := want.Addr.As16()
			copy(raw[at["addr"]:], ip[:])
			raw[at["family"]] = family
			got, err := decode(raw)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}

		for _, bad := range [][]byte{nil, raw[:len(raw)-1], append(bytes.Clone(raw), 0)} {
			_, err := decode(bad)
			require.ErrorContains(t, err, "bytes")
		}
		raw[at["family"]] = 3
		_, err := decode(raw)
		require.ErrorContains(t, err, "family 3")
		binary.NativeEndian.PutUint32(raw[at["signal_nr"]:], 0)
		_, err = decode(raw)
		require.ErrorContains(t, err, "number 0")
		binary.NativeEndian.PutUint32(raw[at["signal_nr"]:], signalNone)
		_, err = decode(raw)
		require.ErrorIs(t, err, errNoSignal)
	})

	// Keys and values are those of the map that the datapath reads.
	t.Run("ipcache", func(t *testing.T) {
		for _, prefix := range []string{"10.7.0.0/16", "10.7.0.1/32", "fd00:7::/32", "fd00:7::1/128"} {
			want, ok := ipcache.NewKey(netip.MustParsePrefix(prefix))
			require.True(t, ok)
			key := newCIDRKey(netip.MustParsePrefix(prefix))
			require.Equal(t, *(*[cidrKeySize]byte)(unsafe.Pointer(&want)), *(*[cidrKeySize]byte)(unsafe.Pointer(&key)), prefix)
			require.Equal(t, prefix, key.prefix().String())
		}
		at, size := offsets(t, spec, "ipcache_key")
		require.EqualValues(t, unsafe.Sizeof(ipcache.Key{}), size)
		require.EqualValues(t, unsafe.Offsetof(ipcache.Key{}.Family), at["family"])
		require.EqualValues(t, unsafe.Offsetof(ipcache.Key{}.PrefixLen), at["prefix_len"])
		require.EqualValues(t, unsafe.Offsetof(ipcache.Key{}.ClusterID), at["cluster_id"])
		at, size = offsets(t, spec, "ipcache_value")
		require.EqualValues(t, unsafe.Sizeof(ipcache.Value{}), size)
		require.EqualValues(t, unsafe.Offsetof(ipcache.Value{}.Identity), at["identity"])
	})
}

// FuzzDecode: nothing that can be in the ring buffer makes trouble.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 48))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if miss, err := decode(raw); err == nil {
			require.True(t, miss.Addr.IsValid())
		}
	})
}
