// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	upstream "github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/hive/script"
	"github.com/cilium/hive/script/scripttest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// patience bounds what is waited for; nothing ordinarily takes a second.
const patience = time.Minute

// running is a hive with the Cell and the tables it reads.
type running struct {
	hive     *hive.Hive
	log      *slog.Logger
	db       *statedb.DB
	writer   *state.Writer
	prune    *reconciler
	health   statedb.Table[types.Status]
	datapath *Datapath
	there    *state.Origin
}

func newRunning(t testing.TB, open Opener, cfg Config, extra ...cell.Cell) *running {
	r := &running{log: hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))}
	cells := append([]cell.Cell{
		state.Cell,
		NewCell(open),
		cell.Provide(func() wire.ClusterInfo { return wire.ClusterInfo{ID: 1, Name: "here"} }),
		cell.Invoke(func(db *statedb.DB, w *state.Writer, c *reconciler, health statedb.Table[types.Status], d *Datapath) {
			r.db, r.writer, r.prune, r.health, r.datapath = db, w, c, health, d
			r.there = w.Origin("there", 2, state.SourceClusterMesh)
		}),
	}, extra...)
	r.hive = upstream.New(cells...)
	hive.AddConfigOverride(r.hive, func(c *Config) { *c = cfg })
	return r
}

func (r *running) start(t testing.TB) {
	require.NoError(t, r.hive.Start(r.log, context.Background()))
}

func (r *running) stop(t testing.TB) {
	require.NoError(t, r.hive.Stop(r.log, context.Background()))
}

func start(t testing.TB, open Opener, cfg Config, extra ...cell.Cell) *running {
	r := newRunning(t, open, cfg, extra...)
	r.start(t)
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *running) do(change func(tx *state.Txn)) {
	tx := r.writer.Begin()
	change(tx)
	tx.Commit()
}

// committed waits until the map has a prefix with this identity. It looks at the
// prefix's own entry by its first address, and can't tell it from a shorter one's
// with the same identity.
func (r *running) committed(t testing.TB, prefix string, identity uint32) {
	t.Helper()
	first := netip.MustParsePrefix(prefix).Addr()
	require.Eventually(t, func() bool {
		entry, ok := r.datapath.Lookup(first)
		return ok && entry.Identity == identity
	}, patience, time.Millisecond, "%s didn't get identity %d", prefix, identity)
}

// answers waits until the map answers for ip with value. Entries that are written
// together needn't become visible together: one that fails is tried again.
func (r *running) answers(t testing.TB, ip, value string) {
	t.Helper()
	require.Eventually(t, func() bool { return r.lookup(t, ip) == value }, patience, time.Millisecond,
		"%s: want %q, have %q", ip, value, stringer(func() string { return r.lookup(t, ip) }))
}

// stringer is a message that is made when it is printed.
type stringer func() string

func (s stringer) String() string { return s() }

func (r *running) lookup(t testing.TB, ip string) string {
	t.Helper()
	entry, ok := r.datapath.Lookup(addr(ip))
	if !ok {
		return ""
	}
	return entry.Value.String()
}

// healthOf is the level and message of the part of health with this name, and the error
// if there is one.
func (r *running) healthOf(name string) string {
	for status := range r.health.All(r.db.ReadTxn()) {
		if id := status.ID.String(); strings.Contains(id, "ipcache") && strings.HasSuffix(id, name) {
			text := fmt.Sprintf("%s %s", status.Level, status.Message)
			if status.Error != "" {
				text += ": " + status.Error
			}
			return text
		}
	}
	return ""
}

func memoryConfig(capacity int) Config {
	cfg := DefaultConfig
	cfg.Backend, cfg.Capacity, cfg.EnableIPv6 = BackendMemory, capacity, false
	return cfg
}

// bpfConfig is a map in a BPF file system of the test's own.
func bpfConfig(t testing.TB, capacity int) Config {
	cfg := memoryConfig(capacity)
	cfg.Backend, cfg.BPFRoot = BackendBPF, bpfRoot(t)
	require.NoError(t, openBPF(t, BPFConfig{Root: cfg.BPFRoot, Dir: "probe", Capacity: 1}).Close())
	return cfg
}

func eachBackend(t *testing.T, capacity int, test func(t *testing.T, open Opener, cfg Config)) {
	t.Run("memory", func(t *testing.T) { test(t, openByFlag, memoryConfig(capacity)) })
	t.Run("bpf", func(t *testing.T) { test(t, openByFlag, bpfConfig(t, capacity)) })
	t.Run("faulty", func(t *testing.T) {
		test(t, func(_ *slog.Logger, cfg Config) (Map, error) {
			return &faultyMap{memoryMap: newMemoryMap(cfg.Capacity)}, nil
		}, memoryConfig(capacity))
	})
}

// faultyMap fails a tenth of what it is asked to do.
type faultyMap struct{ *memoryMap }

func (f *faultyMap) Update(entries []Entry) []error {
	errs := make([]error, len(entries))
	for i := range entries {
		if errs[i] = fault(); errs[i] == nil {
			for _, err := range f.memoryMap.Update(entries[i : i+1]) {
				errs[i] = err
			}
		}
	}
	return errs
}

func (f *faultyMap) Delete(keys []Key) []error {
	errs := make([]error, len(keys))
	for i := range keys {
		if errs[i] = fault(); errs[i] == nil {
			f.memoryMap.Delete(keys[i : i+1])
		}
	}
	return errs
}

func fault() error {
	if rand.IntN(10) == 0 {
		return fmt.Errorf("injected: %w", unix.ENOMEM)
	}
	return nil
}

func TestCellFollowsTheTables(t *testing.T) {
	eachBackend(t, 1000, func(t *testing.T, open Opener, cfg Config) {
		r := start(t, open, cfg)
		r.committed(t, "0.0.0.0/0", identityWorld)
		r.answers(t, "8.8.8.8", "identity=2 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>")

		r.do(func(tx *state.Txn) {
			tx.UpsertNode(r.there, simpleNode("there", "n1", "192.168.0.1", "10.0.1.0/24"))
			tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
			tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("fd00::7/128", "192.168.0.1", 70001))
		})
		r.committed(t, "192.168.0.1/32", identityRemoteNode)
		r.committed(t, "10.0.1.0/24", identityWorld)
		r.committed(t, "10.0.1.7/32", 70000)
		r.committed(t, "fd00::7/128", 70001)
		r.answers(t, "10.0.1.7", "identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel")
		r.answers(t, "fd00::7", "identity=70001 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel")
		r.answers(t, "10.0.1.8", "identity=2 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel")
		r.answers(t, "192.168.0.1", "identity=6 encryptkey=0 tunnelendpoint=0.0.0.0 flags=remotecluster")

		r.do(func(tx *state.Txn) {
			tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.2", 70002))
		})
		r.committed(t, "10.0.1.7/32", 70002)
		r.answers(t, "10.0.1.7", "identity=70002 encryptkey=0 tunnelendpoint=192.168.0.2 flags=hastunnel")

		r.do(func(tx *state.Txn) {
			tx.DeleteEndpoint(r.there, state.Owner{}, netip.MustParsePrefix("10.0.1.7/32"))
			tx.DeleteNode(r.there, "there", "n1")
		})
		require.Eventually(t, func() bool {
			return r.lookup(t, "10.0.1.7") == r.lookup(t, "8.8.8.8") && r.lookup(t, "192.168.0.1") == r.lookup(t, "8.8.8.8")
		}, patience, time.Millisecond)
	})
}

// TestCellRestart: entries of the process before stay in force until the sources
// are complete, and only then what is gone is removed.
func TestCellRestart(t *testing.T) {
	cfg := bpfConfig(t, 1000)
	r := newRunning(t, openByFlag, cfg)
	r.start(t)
	r.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
		tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("10.0.1.8/32", "192.168.0.1", 70000))
	})
	r.committed(t, "10.0.1.7/32", 70000)
	r.committed(t, "10.0.1.8/32", 70000)
	r.stop(t)
	require.Empty(t, r.lookup(t, "10.0.1.7"), "a stopped datapath finds nothing")

	var synced func(*state.Txn)
	r = start(t, openByFlag, cfg, cell.Invoke(func(w *state.Writer) {
		synced = w.RegisterInitializer("test", wire.Endpoints)
	}))
	require.True(t, r.datapath.Restored())
	path, ok := r.datapath.PinPath()
	require.True(t, ok)
	require.FileExists(t, path)
	r.committed(t, "0.0.0.0/0", identityWorld)
	const want = "identity=70000 encryptkey=0 tunnelendpoint=192.168.0.1 flags=hastunnel"
	require.Equal(t, want, r.lookup(t, "10.0.1.7"))
	require.Equal(t, want, r.lookup(t, "10.0.1.8"))

	r.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(r.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
	})
	r.committed(t, "10.0.1.7/32", 70000)
	require.Equal(t, want, r.lookup(t, "10.0.1.8"))

	r.do(func(tx *state.Txn) { synced(tx) })
	require.Eventually(t, func() bool { return r.lookup(t, "10.0.1.8") == r.lookup(t, "8.8.8.8") }, patience, time.Millisecond)
	require.Equal(t, want, r.lookup(t, "10.0.1.7"))
}

// TestCellPruneRepairs: what somebody else did to the map is put right.
func TestCellPruneRepairs(t *testing.T) {
	eachBackend(t, 1000, func(t *testing.T, open Opener, cfg Config) {
		r := start(t, open, cfg)
		r.do(func(tx *state.Txn) {
			for _, ip := range []string{"10.0.1.1/32", "10.0.1.2/32", "10.0.1.3/32"} {
				tx.UpsertEndpoint(r.there, state.Owner{}, claimOn(ip, "192.168.0.1", 70000))
			}
		})
		for _, ip := range []string{"10.0.1.1/32", "10.0.1.2/32", "10.0.1.3/32"} {
			r.committed(t, ip, 70000)
		}
		r.committed(t, "0.0.0.0/0", identityWorld)
		want := content(t, r.datapath)

		for _, damage := range []func() []error{
			func() []error { return r.datapath.Update([]Entry{entryOf(t, "10.0.1.1/32", 666, "")}) },
			func() []error { return r.datapath.Update([]Entry{entryOf(t, "10.9.9.9/32", 666, "")}) },
			func() []error { return r.datapath.Delete([]Key{mustKey(t, "10.0.1.2/32")}) },
		} {
			require.Eventually(t, func() bool { return errors.Join(damage()...) == nil }, patience, time.Millisecond)
			require.Eventually(t, func() bool {
				r.prune.pruneSoon()
				return maps.Equal(want, content(t, r.datapath))
			}, patience, 10*time.Millisecond)
		}
	})
}

// TestCellOverflow: what doesn't fit is counted and reported, what fits stays,
// and room is used when there is some.
func TestCellOverflow(t *testing.T) {
	const capacity, tooMany = 20, 7
	eachBackend(t, capacity, func(t *testing.T, open Opener, cfg Config) {
		if strings.HasSuffix(t.Name(), "/faulty") {
			t.Skip("how many fit at a time would be up to chance")
		}
		r := start(t, open, cfg)
		r.committed(t, "0.0.0.0/0", identityWorld)
		entries := numbered(t, capacity-1+tooMany)
		r.do(func(tx *state.Txn) {
			for _, entry := range entries {
				tx.UpsertEndpoint(r.there, state.Owner{}, wire.Endpoint{Prefix: entry.Prefix(), Identity: entry.Identity})
			}
		})
		require.Eventually(t, func() bool { return r.datapath.Overflow() == tooMany }, patience, time.Millisecond)
		require.Len(t, content(t, r.datapath), capacity)
		require.Eventually(t, func() bool {
			return r.healthOf(".capacity") == "Degraded 7 entries don't fit (--bpf-ipcache-map-max=20): the ipcache map is full"
		}, patience, time.Millisecond)

		// What is in the map can still change, and the rest gets in when others
		// leave.
		var in, out []netip.Prefix
		there := content(t, r.datapath)
		for _, entry := range entries {
			if _, ok := there[entry.Key]; ok {
				in = append(in, entry.Prefix())
			} else {
				out = append(out, entry.Prefix())
			}
		}
		require.Len(t, out, tooMany)
		r.do(func(tx *state.Txn) {
			tx.UpsertEndpoint(r.there, state.Owner{}, wire.Endpoint{Prefix: in[0], Identity: 1234})
			for _, prefix := range in[1 : 1+tooMany] {
				tx.DeleteEndpoint(r.there, state.Owner{}, prefix)
			}
		})
		r.committed(t, in[0].String(), 1234)
		require.Eventually(t, func() bool { return r.datapath.Overflow() == 0 }, patience, time.Millisecond)
		there = content(t, r.datapath)
		for _, prefix := range out {
			require.Contains(t, there, mustKey(t, prefix.String()))
		}
		require.Eventually(t, func() bool { return r.healthOf(".capacity") == "OK Everything fits" }, patience, time.Millisecond)
	})
}

func TestCellFallsBackToMemory(t *testing.T) {
	forbidden := func(*slog.Logger, Config) (Map, error) {
		return nil, fmt.Errorf("%w: %w", ErrBPFNotPermitted, unix.EPERM)
	}
	cfg := memoryConfig(100)
	cfg.Backend = BackendAuto
	r := start(t, forbidden, cfg)
	r.committed(t, "0.0.0.0/0", identityWorld)
	require.Eventually(t, func() bool {
		return r.healthOf(".datapath") == "Degraded in-memory map for 100 entries: BPF maps are not permitted here: operation not permitted"
	}, patience, time.Millisecond)

	// It must not, where the kernel's map was asked for.
	cfg.Backend = BackendBPF
	failing := newRunning(t, forbidden, cfg)
	require.ErrorIs(t, failing.hive.Start(failing.log, context.Background()), ErrBPFNotPermitted)
	failing.stop(t)
}

// TestCellKeepsOffOtherErrors: only the lack of permission makes a fallback.
func TestCellKeepsOffOtherErrors(t *testing.T) {
	cfg := bpfConfig(t, 100)
	cfg.Backend = BackendAuto
	start(t, openByFlag, cfg)
	second := newRunning(t, openByFlag, cfg)
	require.ErrorIs(t, second.hive.Start(second.log, context.Background()), ErrInUse)
	second.stop(t)
}

func TestConfigIsChecked(t *testing.T) {
	require.NoError(t, DefaultConfig.validate())
	for _, change := range []func(*Config){
		func(c *Config) { c.Backend = "disk" },
		func(c *Config) { c.Capacity = 0 },
		func(c *Config) { c.UnderlayProtocol = "ipx" },
		func(c *Config) { c.BPFMapDir = "" },
		func(c *Config) { c.BPFMapDir = "." },
		func(c *Config) { c.BPFMapDir = "/waggle" },
		func(c *Config) { c.BPFMapDir = "../tmp" },
		func(c *Config) { c.BPFMapDir = "waggle.1" },
		func(c *Config) { c.BPFRoot = "bpf" },
		func(c *Config) { c.EnableIPv4, c.EnableIPv6 = false, false },
	} {
		cfg := DefaultConfig
		change(&cfg)
		require.Error(t, cfg.validate())
	}
}

// TestScripts runs testdata/*.txtar.
func TestScripts(t *testing.T) {
	scripttest.Test(t, t.Context(), func(t testing.TB, _ []string) *script.Engine {
		cfg := memoryConfig(1000)
		cfg.EnableIPv6 = true
		r := newRunning(t, openByFlag, cfg, cell.Invoke(func(w *state.Writer) {
			there := w.Origin("there", 2, state.SourceClusterMesh)
			tx := w.Begin()
			defer tx.Commit()
			tx.UpsertNode(there, *dualStackNode("there"))
			tx.UpsertEndpoint(there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
			tx.UpsertEndpoint(there, state.Owner{}, claimOn("fd00:1::7/128", "192.168.0.1", 70001))
		}))
		t.Cleanup(func() { r.stop(t) })
		cmds, err := r.hive.ScriptCommands(r.log)
		require.NoError(t, err)
		maps.Insert(cmds, maps.All(script.DefaultCmds()))
		return &script.Engine{Cmds: cmds, RetryInterval: 10 * time.Millisecond}
	}, nil, "testdata/*.txtar")
}
