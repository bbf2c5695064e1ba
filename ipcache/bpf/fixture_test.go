// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	k8swait "k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// bpfRoot mounts a BPF file system of the test's own.
func bpfRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("bpf", root, "bpf", 0, "mode=0700"); err != nil {
		if errors.Is(err, unix.EPERM) {
			skip.Lacking(t, errors.New("mounting a BPF file system needs CAP_SYS_ADMIN"))
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	return root
}

// newIPCache makes and pins a map as Cilium's is.
func newIPCache(t testing.TB, path string, capacity uint32) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "cilium_ipcache_", Type: ebpf.LPMTrie, KeySize: cidrKeySize, ValueSize: ipcacheValueSize,
		MaxEntries: capacity, Flags: unix.BPF_F_NO_PREALLOC | unix.BPF_F_RDONLY_PROG,
	})
	require.NoError(t, err)
	require.NoError(t, m.Pin(path))
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// fixture is a Kernel with an ipcache map.
type fixture struct {
	*Kernel
	cfg     Config
	entries *ebpf.Map
	read    uint64 // signals that the test has had
}

// newFixture opens a Kernel on directories of the test's own.
func newFixture(t testing.TB, edit func(*Config)) *fixture {
	t.Helper()
	root := bpfRoot(t)
	f := &fixture{cfg: Config{
		Dir:        filepath.Join(root, "ondemand"),
		IPCacheMap: filepath.Join(root, "cilium_ipcache_v2"),
		// No second signal in a test, however slow the machine.
		Interval: time.Hour,
		// Every packet tells what the maps have.
		Recheck: -1,
	}}
	if edit != nil {
		edit(&f.cfg)
	}
	f.entries = newIPCache(t, f.cfg.IPCacheMap, 1<<20)
	f.open(t)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func (f *fixture) open(t testing.TB) {
	t.Helper()
	var err error
	f.Kernel, err = Open(hivetest.Logger(t), f.cfg)
	if errors.Is(err, ErrUnsupported) {
		skip.Lacking(t, err)
	}
	require.NoError(t, err)
}

// upsert puts an entry into the ipcache map.
func (f *fixture) upsert(t testing.TB, prefix string, identity uint32) {
	t.Helper()
	require.NoError(t, f.entries.Put(newCIDRKey(netip.MustParsePrefix(prefix)), missIpcacheValue{Identity: identity}))
}

// stats are the counters, which must add up.
func (f *fixture) stats(t testing.TB) Stats {
	t.Helper()
	stats, err := f.Stats()
	require.NoError(t, err)
	require.Equal(t, stats.Misses, stats.Signals+stats.Repeated+stats.RateLimited+stats.RingFull, "%+v", stats)
	return stats
}

// signals are all that were given since the last call.
func (f *fixture) signals(t testing.TB) (all []Miss) {
	t.Helper()
	given := f.stats(t).Signals
	if f.read == given {
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := f.Read(ctx, func(batch []Miss) {
		all = append(all, batch...)
		f.read += uint64(len(batch))
		if f.read >= given {
			cancel()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, given, f.read)
	return all
}

// run gives a frame to a program as if it had come in on the loopback device.
func (f *fixture) run(t testing.TB, program *ebpf.Program, frame []byte) {
	t.Helper()
	verdict, err := program.Run(&ebpf.RunOptions{Data: frame})
	require.NoError(t, err)
	require.EqualValues(t, tcxNext, int32(verdict), "the packet must go on")
}

// seen waits until so many more packets were looked at: the kernel may hand a packet on
// after who sent it has gone on.
func (f *fixture) seen(t testing.TB, before Stats, packets uint64) {
	t.Helper()
	sum := func(s Stats) uint64 { return s.Hits + s.Misses + s.Others }
	wait(t, func() bool { return sum(f.stats(t)) >= sum(before)+packets }, "packets")
}

// wait looks until something is true, in the test's own thread.
func wait(t testing.TB, done func() bool, what string) {
	t.Helper()
	look := func(context.Context) (bool, error) { return done(), nil }
	if err := k8swait.PollUntilContextTimeout(t.Context(), time.Millisecond, patience, true, look); err != nil {
		t.Fatalf("still waiting for %s", what)
	}
}
