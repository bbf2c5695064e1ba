// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package await

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/testing/skip"
)

// newTrie makes a map of the ipcache's layout.
func newTrie(t testing.TB) *ebpf.Map {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 24, ValueSize: 24, MaxEntries: 100_000, Flags: 1})
	if err != nil {
		skip.Lacking(t, fmt.Errorf("BPF maps need root: %w", err))
	}
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func entryOf(t testing.TB, prefix string, identity uint32) (Entry, ipcache.Value) {
	key, ok := ipcache.NewKey(netip.MustParsePrefix(prefix))
	require.True(t, ok)
	return Entry{key, identity}, ipcache.Value{Identity: identity}
}

// TestWatch: what comes is told once, with its identity alone, and its place is free again.
func TestWatch(t *testing.T) {
	target := newTrie(t)
	w, err := New(target, 2)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	before := Now()
	// A look that is under way may be too early for what was written a moment ago; the one
	// after it isn't.
	look := func() (come []Entry) {
		lookTwice(t, w)
		require.NoError(t, w.Arrived(func(e Entry, at time.Duration) {
			require.True(t, before <= at && at <= Now(), "%v isn't between %v and now", at, before)
			come = append(come, e)
		}))
		before = Now()
		return come
	}
	one, value := entryOf(t, "10.1.2.3/32", 1001)
	six, valueOfSix := entryOf(t, "fd00::1/128", 1002)
	require.NoError(t, w.Expect(one))
	require.NoError(t, w.Expect(six))
	require.ErrorIs(t, w.Expect(one), errBusy)
	require.Empty(t, look())

	cidr, world := entryOf(t, "10.1.0.0/16", 2)
	require.NoError(t, target.Put(cidr.Key, world))
	require.Empty(t, look(), "the address has the identity of its CIDR")
	require.NoError(t, target.Put(one.Key, value))
	require.Equal(t, []Entry{one}, look())
	require.Empty(t, look(), "told twice")

	again, valueAgain := entryOf(t, "10.1.2.3/32", 1003)
	require.NoError(t, w.Expect(again))
	require.Empty(t, look(), "it has the identity of before")
	require.NoError(t, target.Put(again.Key, valueAgain))
	require.NoError(t, target.Put(six.Key, valueOfSix))
	require.ElementsMatch(t, []Entry{again, six}, look())

	_, err = New(target, MaxAwaited+1)
	require.ErrorContains(t, err, "must be 1 to")
}

func lookTwice(t testing.TB, w *Watch) {
	began, _, err := w.Looks()
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		looks, _, err := w.Looks()
		return err == nil && looks >= began+2
	}, time.Minute, interval)
}

// BenchmarkLook is what a process does for 64 entries that don't come, in a map with 100,000
// others; a look of the timer is reported beside it.
func BenchmarkLook(b *testing.B) {
	target := newTrie(b)
	for i := range 99_900 {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		e, value := entryOf(b, netip.PrefixFrom(addr, 32).String(), 1000)
		require.NoError(b, target.Put(e.Key, value))
	}
	w, err := New(target, 64)
	require.NoError(b, err)
	b.Cleanup(func() { w.Close() })
	for i := range 64 {
		e, _ := entryOf(b, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 0, byte(i)}), 32).String(), 1000)
		require.NoError(b, w.Expect(e))
	}
	for b.Loop() {
		if err := w.Arrived(nil); err != nil {
			b.Fatal(err)
		}
	}
	looks, took, err := w.Looks()
	require.NoError(b, err)
	b.ReportMetric(float64(took.Nanoseconds())/float64(looks), "ns/look")
}
