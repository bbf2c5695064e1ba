// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// bpfRoot mounts a BPF file system of the test's own.
func bpfRoot(t testing.TB) string {
	root := t.TempDir()
	if err := mountBPFFS(slog.New(slog.DiscardHandler), root); err != nil {
		if errors.Is(err, unix.EPERM) {
			skip.Lacking(t, fmt.Errorf("mounting a BPF file system needs CAP_SYS_ADMIN: %w", err))
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	return root
}

// openBPF opens a map, or skips the test where BPF isn't permitted.
func openBPF(t testing.TB, cfg BPFConfig) *BPFMap {
	b, err := OpenBPF(hivetest.Logger(t), cfg)
	if errors.Is(err, ErrBPFNotPermitted) {
		skip.Lacking(t, fmt.Errorf("BPF maps need CAP_BPF: %w", err))
	}
	require.NoError(t, err)
	return b
}

// tempBPF is a map that goes with the test.
func tempBPF(t testing.TB, capacity int) *BPFMap {
	b := openBPF(t, BPFConfig{Root: bpfRoot(t), Dir: "test", Capacity: capacity})
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func content(t testing.TB, m Map) map[Key]Value {
	got := map[Key]Value{}
	for entry, err := range m.All() {
		require.NoError(t, err)
		got[entry.Key] = entry.Value
	}
	return got
}

// eachMap runs a test on both kinds, and on the kernel's without batches.
func eachMap(t *testing.T, capacity int, test func(t *testing.T, m Map)) {
	t.Run("memory", func(t *testing.T) { test(t, newMemoryMap(capacity)) })
	t.Run("bpf", func(t *testing.T) { test(t, tempBPF(t, capacity)) })
	t.Run("bpf-single", func(t *testing.T) {
		b := tempBPF(t, capacity)
		b.single = true
		test(t, b)
	})
}

func TestMapFindsTheLongestPrefix(t *testing.T) {
	eachMap(t, 100, func(t *testing.T, m Map) {
		require.Nil(t, m.Update([]Entry{
			entryOf(t, "0.0.0.0/0", 2, ""),
			entryOf(t, "10.0.1.0/24", 9, "192.168.0.1"),
			entryOf(t, "10.0.1.7/32", 70000, "192.168.0.1"),
			entryOf(t, "fd00::/64", 10, "192.168.0.1"),
			entryOf(t, "fd00::7/128", 70001, "fd01::1"),
		}))
		for ip, want := range map[string]string{
			"10.0.1.7":        "10.0.1.7/32 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel",
			"::ffff:10.0.1.7": "10.0.1.7/32 identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel",
			"10.0.1.8":        "10.0.1.8/32 identity=9 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel",
			"8.8.8.8":         "8.8.8.8/32 identity=2 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>",
			"fd00::7":         "fd00::7/128 identity=70001 encryptkey=0 tunnelendpoint=fd01::1 flags=hastunnel,ipv6tunnel",
			"fd00::8":         "fd00::8/128 identity=10 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel",
		} {
			entry, ok := m.Lookup(addr(ip))
			require.True(t, ok, ip)
			require.Equal(t, want, entry.String())
		}
		_, ok := m.Lookup(addr("fe80::1"))
		require.False(t, ok)
		_, ok = m.Lookup(netip.Addr{})
		require.False(t, ok)

		// A change, and a deletion that uncovers the range.
		require.Nil(t, m.Update([]Entry{entryOf(t, "10.0.1.7/32", 70002, "192.168.0.2")}))
		entry, _ := m.Lookup(addr("10.0.1.7"))
		require.EqualValues(t, 70002, entry.Identity)
		require.Nil(t, m.Delete([]Key{mustKey(t, "10.0.1.7/32"), mustKey(t, "10.9.9.9/32"), mustKey(t, "fd00::7/128")}))
		entry, _ = m.Lookup(addr("10.0.1.7"))
		require.EqualValues(t, 9, entry.Identity)
		require.Len(t, content(t, m), 3)
	})
}

func TestMapBatches(t *testing.T) {
	// More than two chunks, so that borders are crossed.
	const n = 2*chunkSize + 100
	eachMap(t, n, func(t *testing.T, m Map) {
		entries := numbered(t, n)
		require.Nil(t, m.Update(entries))
		got := content(t, m)
		require.Len(t, got, n)
		for _, entry := range entries {
			require.Equal(t, entry.Value, got[entry.Key])
		}

		// Every second is deleted, those that aren't there among them.
		var keys []Key
		for i := 0; i < n; i += 2 {
			keys = append(keys, entries[i].Key, mustKey(t, fmt.Sprintf("172.16.%d.%d/32", i>>8&255, i&255)))
		}
		require.Nil(t, m.Delete(keys))
		require.Len(t, content(t, m), n/2)
	})
}

// numbered are n entries, one address each.
func numbered(t testing.TB, n int) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		key, ok := NewKey(netip.PrefixFrom(ip, 32))
		require.True(t, ok)
		entries[i] = Entry{key, NewValue(70000+uint32(i), netip.AddrFrom4([4]byte{192, 168, 0, byte(i)}), 0, 0)}
	}
	return entries
}

func TestMapOverflowKeepsWhatFits(t *testing.T) {
	const capacity = 50
	eachMap(t, capacity, func(t *testing.T, m Map) {
		require.Equal(t, capacity, m.Capacity())
		entries := numbered(t, capacity+7)
		errs := m.Update(entries)
		require.Len(t, errs, len(entries))
		for i, err := range errs {
			if i < capacity {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrFull)
			}
		}
		require.Len(t, content(t, m), capacity)

		// A full map still takes changes of what it has, in a batch with what it
		// doesn't take.
		entries[0].Identity, entries[1].Identity = 1000, 1001
		errs = m.Update([]Entry{entries[0], entries[capacity], entries[1]})
		require.NoError(t, errs[0])
		require.ErrorIs(t, errs[1], ErrFull)
		require.NoError(t, errs[2])
		got := content(t, m)
		require.Equal(t, entries[0].Value, got[entries[0].Key])
		require.Equal(t, entries[1].Value, got[entries[1].Key])

		// Room lets the others in.
		require.Nil(t, m.Delete([]Key{entries[3].Key}))
		require.Nil(t, m.Update([]Entry{entries[capacity]}))
		require.Len(t, content(t, m), capacity)
	})
}

// TestMapsAgree applies the same changes to the map in memory and to the one in
// the kernel, and expects the same content, errors and lookups.
func TestMapsAgree(t *testing.T) {
	const capacity = 24
	kernel := tempBPF(t, capacity)
	// Few addresses, so that prefixes nest and repeat.
	genKey := rapid.Custom(func(t *rapid.T) Key {
		ip := rapid.SampledFrom([]string{"10.0.0.0", "10.0.0.1", "10.0.0.128", "10.1.0.0", "fd00::", "fd00::1", "fd00:0:0:1::"}).Draw(t, "address")
		prefix := netip.PrefixFrom(netip.MustParseAddr(ip), 0)
		bits := rapid.SampledFrom([]int{0, 8, 16, 24, 25, 31, 32, 64, 127, 128}).Draw(t, "bits")
		key, _ := NewKey(netip.PrefixFrom(prefix.Addr(), min(bits, prefix.Addr().BitLen())))
		return key
	})
	genEntry := rapid.Custom(func(t *rapid.T) Entry {
		return Entry{genKey.Draw(t, "key"), NewValue(rapid.Uint32().Draw(t, "identity"), netip.Addr{}, 0, 0)}
	})
	rapid.Check(t, func(t *rapid.T) {
		var all []Key
		for entry := range kernel.All() {
			all = append(all, entry.Key)
		}
		kernel.Delete(all)
		memory := newMemoryMap(capacity)

		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				batch := rapid.SliceOfN(genEntry, 1, 8).Draw(t, "entries")
				require.Equal(t, full(memory.Update(batch)), full(kernel.Update(batch)))
			},
			"delete": func(t *rapid.T) {
				batch := rapid.SliceOfN(genKey, 1, 4).Draw(t, "keys")
				require.Nil(t, memory.Delete(batch))
				require.Nil(t, kernel.Delete(batch))
			},
			"": func(t *rapid.T) {
				want := map[Key]Value{}
				for entry := range memory.All() {
					want[entry.Key] = entry.Value
				}
				got := map[Key]Value{}
				for entry, err := range kernel.All() {
					require.NoError(t, err)
					got[entry.Key] = entry.Value
				}
				require.Equal(t, want, got)
				for _, ip := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.129", "10.1.2.3", "11.0.0.0", "fd00::1", "fd00::2", "fd00:0:0:1::5", "fe80::"} {
					wanted, wantOK := memory.Lookup(addr(ip))
					found, ok := kernel.Lookup(addr(ip))
					require.Equal(t, wantOK, ok, ip)
					require.Equal(t, wanted, found, ip)
				}
			},
		})
	})
}

// full says which entries didn't fit.
func full(errs []error) (indexes []int) {
	for i, err := range errs {
		if errors.Is(err, ErrFull) {
			indexes = append(indexes, i)
		} else if err != nil {
			indexes = append(indexes, -i)
		}
	}
	return indexes
}

func TestBPFMapIsPinnedAndReopened(t *testing.T) {
	cfg := BPFConfig{Root: bpfRoot(t), Dir: "a/b", Capacity: 100}
	b := openBPF(t, cfg)
	require.False(t, b.Restored())
	require.FileExists(t, b.Path())
	require.Nil(t, b.Update(numbered(t, 10)))

	// It is one process's at a time.
	_, err := OpenBPF(hivetest.Logger(t), cfg)
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, b.Close())

	b = openBPF(t, cfg)
	require.True(t, b.Restored())
	require.Len(t, content(t, b), 10)
	require.NoError(t, b.Close())

	// Another size: a new map.
	cfg.Capacity = 200
	b = openBPF(t, cfg)
	require.False(t, b.Restored())
	require.Equal(t, 200, b.Capacity())
	require.Empty(t, content(t, b))
	require.NoError(t, b.Close())
}

func TestBPFMapOfAnotherLayoutIsReplaced(t *testing.T) {
	cfg := BPFConfig{Root: bpfRoot(t), Dir: "test", Capacity: 100}
	b := openBPF(t, cfg)
	require.NoError(t, b.Close())
	require.NoError(t, os.Remove(b.Path()))

	old := mapSpec(100)
	old.ValueSize = 12 // as in upstream's first version
	pin(t, old, b.Path())

	b = openBPF(t, cfg)
	require.False(t, b.Restored())
	require.Nil(t, b.Update(numbered(t, 10)))
	require.NoError(t, b.Close())
}

func TestForeignMapIsLeftAlone(t *testing.T) {
	cfg := BPFConfig{Root: bpfRoot(t), Dir: "tc/globals", Capacity: 100}
	b := openBPF(t, cfg)
	require.NoError(t, b.Close())
	require.NoError(t, os.Remove(b.Path()))

	// An agent's own map beside ours isn't touched, even in its own directory.
	agents := mapSpec(100)
	agents.Name = "cilium_ipcache_"
	pin(t, agents, filepath.Join(filepath.Dir(b.Path()), "cilium_ipcache_v2"))
	b = openBPF(t, cfg)
	require.False(t, b.Restored())
	require.NoError(t, b.Close())
	require.NoError(t, os.Remove(b.Path()))

	// Nor is one that somebody pinned where ours would be.
	pin(t, agents, b.Path())
	_, err := OpenBPF(hivetest.Logger(t), cfg)
	require.ErrorIs(t, err, ErrForeignMap)
	require.FileExists(t, b.Path())
}

func pin(t *testing.T, spec *ebpf.MapSpec, path string) {
	m, err := ebpf.NewMap(spec)
	require.NoError(t, err)
	require.NoError(t, m.Pin(path))
	require.NoError(t, m.Close())
}

func BenchmarkBPFUpdate(b *testing.B) {
	const n = 100_000
	entries := numbered(b, n)
	for _, single := range []bool{false, true} {
		name := "batch"
		if single {
			name = "single"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				m := tempBPF(b, n)
				m.single = single
				b.StartTimer()
				require.Nil(b, m.Update(entries))
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkBPFAll(b *testing.B) {
	const n = 100_000
	m := tempBPF(b, n)
	require.Nil(b, m.Update(numbered(b, n)))
	for b.Loop() {
		require.Len(b, content(b, m), n)
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "entries/s")
}
