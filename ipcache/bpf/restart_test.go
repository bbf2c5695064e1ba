// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/testing/skip"
)

// TestRestartLeavesNoGap has a pod send all the time, each packet to another address,
// while the process ends and begins anew several times: each packet is seen and told.
func TestRestartLeavesNoGap(t *testing.T) {
	ns := inNamespace(t)
	f := newFixture(t, func(cfg *Config) {
		cfg.NetNS, cfg.Rate, cfg.Burst, cfg.RingBytes = ns, 1e6, 1e6, 1<<22
	})
	require.NoError(t, f.SetCIDRs(cidrs()))
	lxc, pod := addVeth(t, "lxc1", "pod1"), ifindex(t, "pod1")
	require.NoError(t, f.attach(lxc, KindPod))
	pinned := linkID(t, f, lxc)
	counters, err := f.maps.counters.Clone()
	require.NoError(t, err)
	defer counters.Close()
	misses := func() (sum uint64) {
		var perCPU []missCounters
		require.NoError(t, counters.Lookup(uint32(0), &perCPU))
		for _, c := range perCPU {
			sum += c.Misses
		}
		return sum
	}

	// The ring has room for all signals, however long the restarts take.
	const packets, most, restarts = 20_000, 60_000, 10
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for range restarts {
			if err := f.Close(); err != nil {
				stopped <- err
				return
			}
			var err error
			if f.Kernel, err = Open(hivetest.Logger(t), f.cfg); err != nil {
				stopped <- err
				return
			}
		}
		close(stop)
		stopped <- nil
	}()
	put, done := sender(t, pod)
	defer done()
	pace := time.NewTicker(time.Millisecond) // that of a pod that sends
	defer pace.Stop()
	sent := 0
	for running := true; running && sent < most || sent < packets; sent++ {
		if sent > packets {
			<-pace.C
		}
		put(frame("10.1.0.1", absent(sent)))
		// No more than the interface's queue holds.
		wait(t, func() bool { return uint64(sent) <= misses()+100 }, "what was sent to be seen")
		select {
		case <-stop:
			running = false
		default:
		}
	}
	require.NoError(t, <-stopped)
	f.seen(t, Stats{}, uint64(sent))
	stats := f.stats(t)
	require.EqualValues(t, sent, stats.Misses)
	require.Zero(t, stats.Others)
	require.Zero(t, stats.RingFull)

	// They are all told of, those of the time without a process too. What a program was
	// told, its successor doesn't know, so that more than once is no error.
	told := map[netip.Addr]bool{}
	for _, addr := range addrs(f.signals(t)) {
		told[addr] = true
	}
	require.Len(t, told, sent)

	require.Equal(t, map[int]Kind{lxc: KindPod}, f.kinds())
	require.Equal(t, pinned, linkID(t, f, lxc), "the link is the same")
	require.Equal(t, []ebpf.ProgramID{programID(t, f.programs.ethernet.Pod)}, chain(t, lxc), "with a new program")
}

func linkID(t testing.TB, f *fixture, ifindex int) link.ID {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.links[ifindex].link.Info()
	require.NoError(t, err)
	return info.ID
}

// TestRestartTakesOver: what was pinned is used, and what has no interface any longer
// goes.
func TestRestartTakesOver(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	require.NoError(t, f.Follow(netip.MustParseAddr("10.7.0.1")))
	f.upsert(t, "10.7.0.1/32", 458753)
	first, second := addVeth(t, "lxc1", "pod1"), addVeth(t, "lxc2", "pod2")
	require.NoError(t, f.attach(first, KindPod))
	require.NoError(t, f.attach(second, KindPod))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.1"))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.9"))
	seen, err := f.LastSeen()
	require.NoError(t, err)
	stats := f.stats(t)
	require.NoError(t, f.Close())

	remove(t, second)
	// More addresses can be followed now, and a smaller ring is another ring.
	f.cfg.MaxFollowed = 10
	f.open(t)
	require.Equal(t, map[int]Kind{first: KindPod}, f.kinds())
	require.NoFileExists(t, filepath.Join(f.linksDir(), pinName(KindPod, second)))
	require.Equal(t, stats, f.stats(t))
	again, err := f.LastSeen()
	require.NoError(t, err)
	require.Equal(t, seen, again)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.9")}, addrs(f.signals(t)))
	f.run(t, f.programs.ethernet.Pod, frame("10.1.0.1", "10.7.0.10"))
	require.Len(t, f.signals(t), 1, "the pod CIDRs are still there")

	// A kind that changed is replaced in place.
	id := linkID(t, f, first)
	require.NoError(t, f.attach(first, KindUplink))
	require.Equal(t, id, linkID(t, f, first))
	require.NoError(t, f.Close())
	f.open(t)
	require.Equal(t, map[int]Kind{first: KindUplink}, f.kinds())
	require.Equal(t, []ebpf.ProgramID{programID(t, f.programs.ethernet.Uplink)}, chain(t, first))
}

// TestMapThatIsNotMade leaves what there was.
func TestMapThatIsNotMade(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	addr := netip.MustParseAddr("10.7.0.1")
	require.NoError(t, f.Follow(addr))
	require.NoError(t, f.Close())
	path := filepath.Join(f.cfg.Dir, seenName)
	spec, err := loadMiss()
	require.NoError(t, err)
	tooLarge := spec.Maps[seenName]
	tooLarge.MaxEntries = 1<<32 - 1
	_, err = openMap(hivetest.Logger(t), path, tooLarge)
	require.ErrorContains(t, err, "for 4294967295 entries")
	f.open(t)
	seen, err := f.LastSeen()
	require.NoError(t, err)
	require.Contains(t, seen, addr)
}

// TestReplacedIPCache: an agent with another size of its map makes a new one.
func TestReplacedIPCache(t *testing.T) {
	inNamespace(t)
	f := newFixture(t, nil)
	require.NoError(t, f.SetCIDRs(cidrs()))
	f.upsert(t, "10.7.0.1/32", 458753)
	lxc, pod := addVeth(t, "lxc1", "pod1"), ifindex(t, "pod1")
	require.NoError(t, f.attach(lxc, KindPod))
	replaced, err := f.refresh()
	require.NoError(t, err)
	require.False(t, replaced)

	require.NoError(t, os.Remove(f.cfg.IPCacheMap))
	_, err = f.refresh()
	require.ErrorIs(t, err, fs.ErrNotExist)
	newIPCache(t, f.cfg.IPCacheMap, 100)
	send(t, pod, frame("10.1.0.1", "10.7.0.1"))
	f.seen(t, Stats{}, 1)
	require.Empty(t, f.signals(t))

	replaced, err = f.refresh()
	require.NoError(t, err)
	require.True(t, replaced)
	send(t, pod, frame("10.1.0.1", "10.7.0.1"))
	f.seen(t, Stats{Hits: 1}, 1)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.7.0.1")}, addrs(f.signals(t)), "the new map doesn't have it")
}

func TestDirectories(t *testing.T) {
	f := newFixture(t, nil)
	open := func(edit func(*Config)) error {
		cfg := f.cfg
		edit(&cfg)
		k, err := Open(hivetest.Logger(t), cfg)
		if err == nil {
			require.NoError(t, k.Close())
		}
		return err
	}
	root := filepath.Dir(f.cfg.Dir)

	err := open(func(*Config) {})
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, f.cfg.Dir)

	err = open(func(cfg *Config) {
		cfg.Dir, cfg.IPCacheMap = filepath.Join(root, "other"), filepath.Join(root, "absent")
	})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "absent")

	require.ErrorContains(t, open(func(cfg *Config) { cfg.Dir = t.TempDir() }), "isn't on a BPF file system")

	file := filepath.Join(t.TempDir(), "map")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	err = open(func(cfg *Config) { cfg.Dir, cfg.IPCacheMap = filepath.Join(root, "other"), file })
	require.ErrorContains(t, err, file+", isn't on a BPF file system")
	require.NotErrorIs(t, err, ErrUnsupported)

	// A map that isn't the ipcache's.
	odd, err := ebpf.NewMap(&ebpf.MapSpec{Name: "odd", Type: ebpf.Hash, KeySize: 24, ValueSize: 12, MaxEntries: 1})
	require.NoError(t, err)
	defer odd.Close()
	require.NoError(t, odd.Pin(filepath.Join(root, "odd")))
	err = open(func(cfg *Config) { cfg.Dir, cfg.IPCacheMap = filepath.Join(root, "other"), filepath.Join(root, "odd") })
	require.ErrorIs(t, err, ErrForeignPin)

	// Pins that aren't ours, and a map that only bears the name: nothing is touched.
	for _, name := range []string{"odd", seenName, linksName + "/odd", linksName + "/pod_x"} {
		dir := filepath.Join(root, "foreign")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, linksName), 0o700))
		other, err := odd.Clone()
		require.NoError(t, err)
		require.NoError(t, other.Pin(filepath.Join(dir, name)))
		err = open(func(cfg *Config) { cfg.Dir = dir })
		require.ErrorIs(t, err, ErrForeignPin, name)
		require.ErrorContains(t, err, name)
		require.ErrorIs(t, Remove(hivetest.Logger(t), dir), ErrForeignPin, name)
		require.FileExists(t, filepath.Join(dir, name))
		require.NoError(t, other.Unpin())
		require.NoError(t, other.Close())
		require.NoError(t, Remove(hivetest.Logger(t), dir))
	}
}

func TestClosed(t *testing.T) {
	f := newFixture(t, nil)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.ErrorIs(t, f.attach(1, KindPod), ErrClosed)
	_, err := f.refresh()
	require.ErrorIs(t, err, ErrClosed)
	_, err = f.Measure(KindPod, frame("10.1.0.1", "10.7.0.1"), 1)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, f.SetCIDRs(cidrs()), ErrClosed)
	_, err = f.CIDRs()
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, f.Follow(netip.MustParseAddr("10.7.0.1")), ErrClosed)
	require.ErrorIs(t, f.Forget(netip.MustParseAddr("10.7.0.1")), ErrClosed)
	_, err = f.LastSeen()
	require.ErrorIs(t, err, ErrClosed)
	_, err = f.Stats()
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, f.Read(t.Context(), nil), ErrClosed)
	require.Empty(t, f.kinds())
	require.NoError(t, f.detach(1))
}

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]Config{
		"no directory":            {IPCacheMap: "x"},
		"no ipcache map":          {Dir: "x"},
		"an interval of -1s":      {Dir: "x", IPCacheMap: "x", Interval: -time.Second},
		"4294967295 signals":      {Dir: "x", IPCacheMap: "x", Rate: 1<<32 - 1},
		"-1 addresses":            {Dir: "x", IPCacheMap: "x", MaxFollowed: -1},
		"1048577 addresses":       {Dir: "x", IPCacheMap: "x", MaxFollowed: MaxMaxFollowed + 1},
		"a ring buffer of 100000": {Dir: "x", IPCacheMap: "x", RingBytes: 100_000},
		"a ring buffer of -4096":  {Dir: "x", IPCacheMap: "x", RingBytes: -4096},
	} {
		_, err := Open(hivetest.Logger(t), cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestUnsupported(t *testing.T) {
	err := probe([]need{
		{"what is there", func() error { return nil }},
		{"programs on TCX", func() error { return ebpf.ErrNotSupported }},
	})
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorContains(t, err, "programs on TCX")
	for _, need := range needs() {
		if err := need.try(); err != nil {
			skip.Lacking(t, errors.New(need.what+" is needed: "+err.Error()))
		}
	}
}

// TestNotPermitted has a thread without capabilities.
func TestNotPermitted(t *testing.T) {
	f := newFixture(t, nil)
	require.NoError(t, f.Close())
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine.
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := Open(hivetest.Logger(t), f.cfg)
		done <- err
	}()
	require.ErrorIs(t, <-done, ErrUnsupported)
	f.open(t)
}
