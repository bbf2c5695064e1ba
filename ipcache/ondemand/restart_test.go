// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	upstream "github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/hive/health/types"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/hivetest"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
	"github.com/waggle-mesh/waggle/testing/skip"
)

// agent is one process: the real cells, its map in the kernel, and the kernel's signals
// by hand. The cluster red is in its tables from the start, as after the first sync.
type agent struct {
	hive     *hive.Hive
	log      *slog.Logger
	db       *statedb.DB
	writer   *state.Writer
	tables   state.Tables
	ipcache  *ipcache.Datapath
	service  *Service
	health   statedb.Table[types.Status]
	complete func() // the nodes are
}

// opener hands out a kernel's side that is driven by hand, once at a time as the real one.
type opener struct {
	*handKernel
	mu      sync.Mutex
	fails   error
	removed []string
	opened  bpf.Config
	open    bool
	// jobs count what works with what is open, and unfinished what did when it was closed.
	jobs, unfinished atomic.Int64
}

func (o *opener) Open(_ *slog.Logger, cfg bpf.Config, _, _ bpf.Patterns) (Opened, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.fails != nil:
		return Opened{}, o.fails
	case o.open:
		return Opened{}, bpf.ErrInUse
	}
	o.opened, o.open = cfg, true
	return Opened{
		Kernel: o,
		Interfaces: func(ctx context.Context, _ cell.Health) error {
			o.jobs.Add(1)
			defer o.jobs.Add(-1)
			<-ctx.Done()
			return nil
		},
		Close: o.close,
	}, nil
}

func (o *opener) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = false
	o.unfinished.Add(o.jobs.Load())
	return nil
}

// Read implements Kernel.
func (o *opener) Read(ctx context.Context, handle func([]bpf.Miss)) error {
	o.jobs.Add(1)
	defer o.jobs.Add(-1)
	return o.handKernel.Read(ctx, handle)
}

// let has it fail, or not any longer.
func (o *opener) let(fails error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fails = fails
}

// reads is the map that programs read; empty if none is open.
func (o *opener) reads() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.open {
		return ""
	}
	return o.opened.IPCacheMap
}

func (o *opener) Remove(_ *slog.Logger, dir string) error {
	o.removed = append(o.removed, dir)
	return o.fails
}

func newHandKernel() *handKernel {
	return &handKernel{signals: make(chan []bpf.Miss), followed: map[netip.Addr]time.Duration{}}
}

// newAgent makes one whose map is below root, or in memory if root is empty.
func newAgent(t *testing.T, root string, o *opener, s *source, configure ...func(*Config)) *agent {
	a := &agent{log: hivetest.Logger(t, hivetest.LogLevel(slog.LevelWarn))}
	a.hive = upstream.New(
		cell.Provide(func() wire.ClusterInfo { return wire.ClusterInfo{ID: 1, Name: "home", MaxConnectedClusters: 255} }),
		cell.Config(etcd.DefaultConfig),
		state.Cell, remote.Cell, ingest.Cell, ipcache.Cell, NewCell(o),
		cell.Provide(func() resolverOut { return resolverOut{Resolver: s} }),
		cell.Invoke(func(db *statedb.DB, w *state.Writer, m *ipcache.Datapath, s *Service, health statedb.Table[types.Status]) {
			a.db, a.writer, a.tables, a.ipcache, a.service, a.health = db, w, w.Tables(), m, s, health
			done := w.RegisterInitializer("test", wire.Nodes)
			a.complete = func() { a.do(done) }
		}),
	)
	hive.AddConfigOverride(a.hive, func(c *ipcache.Config) {
		c.Capacity, c.Backend = 1000, ipcache.BackendMemory
		if root != "" {
			c.BPFRoot, c.Backend = root, ipcache.BackendBPF
		}
	})
	hive.AddConfigOverride(a.hive, func(c *Config) {
		c.Enable, c.IPCacheMap = true, "/nowhere"
		for _, fn := range configure {
			fn(c)
		}
	})
	require.NoError(t, a.hive.Populate(a.log))
	a.service.retry = 10 * time.Millisecond
	if e := a.service.engine; e != nil {
		// Nobody is connected here, so that "local" could say of nothing that it is absent.
		e.chain.others = e.chain.others[1:]
	}
	a.do(func(tx *state.Txn) {
		tx.UpdateRemoteCluster("red", func(row *state.RemoteCluster) { row.ClusterID = redID })
		tx.UpsertNode(a.writer.Origin("red", redID, state.SourceClusterMesh), wire.Node{
			Name: "n1", Cluster: "red", ClusterID: redID, PodCIDRs4: prefixes("10.2.0.0/24")})
	})
	return a
}

// resolverOut gives the hive a resolver of its own.
type resolverOut struct {
	cell.Out
	Resolver IPCacheMissResolver `group:"ipcache-miss-resolvers"`
}

func (a *agent) do(fn func(*state.Txn)) {
	tx := a.writer.Begin()
	fn(tx)
	tx.Commit()
}

func (a *agent) start(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, a.hive.Start(a.log, ctx))
}

func (a *agent) stop(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, a.hive.Stop(a.log, ctx))
}

// inMap is the identity that the map has at an address: that of the world if it has
// only the node's CIDR.
func (a *agent) inMap(addr netip.Addr) uint32 {
	entry, _ := a.ipcache.Lookup(addr)
	return entry.Identity
}

func (a *agent) initialized() bool {
	done, _ := a.tables.Endpoints.Initialized(a.db.ReadTxn())
	return done
}

// degraded is what the part of on-demand resolution of this name complains about.
func (a *agent) degraded(part string) string {
	for status := range a.health.All(a.db.ReadTxn()) {
		if n := len(status.ID.Component); n > 0 && status.ID.Component[n-1] == part && status.Level == types.LevelDegraded {
			return status.Message + ": " + status.Error
		}
	}
	return ""
}

// bpfRoot mounts a BPF file system of the test's own.
func bpfRoot(t *testing.T) string {
	root := t.TempDir()
	if err := unix.Mount("bpf", root, "bpf", 0, "mode=0700"); errors.Is(err, unix.EPERM) {
		skip.Lacking(t, fmt.Errorf("mounting a BPF file system needs CAP_SYS_ADMIN: %w", err))
	} else {
		require.NoError(t, err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	return root
}

// TestRestart has a process resolve four addresses and end. Its successor finds them in
// the map, which nobody may take out of it before they are asked for again.
func TestRestart(t *testing.T) {
	root := bpfRoot(t)
	kernel := &opener{handKernel: newHandKernel()}
	stays, changes, goes, idle := podAddr, otherAddr, netip.MustParseAddr("10.2.0.12"), netip.MustParseAddr("10.2.0.13")
	s := &source{name: "test"}
	s.has(endpointAt(stays, webID), endpointAt(changes, webID), endpointAt(goes, webID), endpointAt(idle, webID))

	first := newAgent(t, root, kernel, s)
	first.start(t)
	first.complete()
	require.EventuallyWithT(t, func(t *assert) { require.True(t, first.initialized()) }, patience, tick)
	kernel.signals <- []bpf.Miss{
		{Addr: stays, Side: bpf.SideDestination}, {Addr: changes, Side: bpf.SideDestination},
		{Addr: goes, Side: bpf.SideDestination}, {Addr: idle, Side: bpf.SideDestination},
	}
	require.EventuallyWithT(t, func(t *assert) {
		for _, addr := range []netip.Addr{stays, changes, goes, idle} {
			require.Equal(t, webID, first.inMap(addr))
			require.True(t, kernel.follows(addr))
		}
	}, patience, tick)
	first.stop(t)
	now := monotonic()
	for _, addr := range []netip.Addr{stays, changes, goes} {
		kernel.used(addr, now)
	}
	kernel.used(idle, 1)

	asked, let := make(chan Question, 10), make(chan struct{})
	s.has(endpointAt(stays, webID), endpointAt(changes, dbID), endpointAt(idle, webID))
	has := s.with
	s.answer(func(ctx context.Context, q Question) (Answer, error) {
		asked <- q
		select {
		case <-let:
			return has(ctx, q)
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		}
	})
	second := newAgent(t, root, kernel, s, func(c *Config) { c.LookupTimeout = patience })
	second.start(t)
	defer second.stop(t)
	second.complete()
	for range 3 {
		require.NotEqual(t, idle, (<-asked).Addr, "what wasn't used isn't asked for")
	}
	// All else is synced, and still nothing is pruned.
	require.False(t, second.initialized())
	for _, addr := range []netip.Addr{stays, changes, goes, idle} {
		require.Equal(t, webID, second.inMap(addr))
	}
	close(let)
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, second.initialized())
		require.Equal(t, webID, second.inMap(stays))
		require.Equal(t, dbID, second.inMap(changes))
		require.Less(t, second.inMap(goes), wire.MinIdentity)
		require.Less(t, second.inMap(idle), wire.MinIdentity)
	}, patience, tick)
	require.True(t, kernel.follows(stays))
	require.False(t, kernel.follows(goes))
	require.False(t, kernel.follows(idle))
}

func TestRestartWhileTheClusterIsAway(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel()}
	require.NoError(t, kernel.Follow(podAddr))
	s := &source{name: "test"}
	s.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
	a := newAgent(t, "", kernel, s)
	a.start(t)
	defer a.stop(t)
	a.complete()
	require.EventuallyWithT(t, func(t *assert) { require.Greater(t, s.asked.Load(), int64(1), "it is asked again") }, patience, tick)
	require.False(t, a.initialized())
	s.has(endpointAt(podAddr, webID))
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, a.initialized())
		require.Equal(t, webID, a.inMap(podAddr))
	}, patience, tick)
}

// TestRestartWhileTheClusterStaysAway: what can't be asked for in time goes, and health
// says so until it is back.
func TestRestartWhileTheClusterStaysAway(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel()}
	require.NoError(t, kernel.Follow(podAddr, otherAddr))
	s := &source{name: "test"}
	s.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
	a := newAgent(t, "", kernel, s)
	e := a.service.engine
	e.restoreTimeout, e.lostRetry = 50*time.Millisecond, 10*time.Millisecond
	for _, r := range e.chain.others {
		r.pause = time.Millisecond
	}
	a.start(t)
	defer a.stop(t)
	a.complete()
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, a.initialized())
		require.Contains(t, a.degraded("job-restore"), `2 of "red"`)
		require.False(t, kernel.follows(podAddr))
	}, patience, tick)
	s.has(endpointAt(podAddr, webID))
	require.EventuallyWithT(t, func(t *assert) {
		require.Equal(t, webID, a.inMap(podAddr))
		require.True(t, kernel.follows(podAddr))
		require.Empty(t, a.degraded("job-restore"))
	}, patience, tick)
}

// TestLostIsForgotten with its cluster.
func TestLostIsForgotten(t *testing.T) {
	f := prepare(t, func(s *settings) { s.restoreTimeout, s.lostRetry = time.Millisecond, 10*time.Millisecond })
	require.NoError(t, f.kernel.Follow(podAddr))
	f.source.answer(func(context.Context, Question) (Answer, error) { return Answer{}, ErrUnavailable })
	f.start()
	f.eventually(func(t *assert) { require.Contains(t, f.degraded("restore"), `1 of "red"`) })
	f.leave("red", redID)
	f.eventually(func(t *assert) { require.Empty(t, f.degraded("restore")) })
}

func TestKernelThatCannot(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel(), fails: bpf.ErrUnsupported}
	s := &source{name: "test"}
	s.has(endpointAt(podAddr, webID))
	a := newAgent(t, "", kernel, s)
	a.start(t)
	defer a.stop(t)
	a.complete()
	require.EventuallyWithT(t, func(t *assert) {
		require.Contains(t, a.degraded("kernel"), bpf.ErrUnsupported.Error())
		require.True(t, a.initialized(), "the rest of the agent works")
	}, patience, tick)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := a.service.engine.Resolve(ctx, podAddr)
	require.NoError(t, err, "by hand it is resolved")
}

func TestMapThatIsNotInTheKernel(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel()}
	a := newAgent(t, "", kernel, &source{}, func(c *Config) { c.IPCacheMap = "" })
	a.service.with.MapConfig.BPFRoot = t.TempDir() // no cilium-agent's either
	a.start(t)
	defer a.stop(t)
	require.EventuallyWithT(t, func(t *assert) { require.Contains(t, a.degraded("kernel"), flagIPCacheMap) }, patience, tick)
	require.Empty(t, kernel.reads())
}

// TestKernelOpensLate: another process has it still, which ends meanwhile.
func TestKernelOpensLate(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel(), fails: bpf.ErrInUse}
	absent := netip.MustParseAddr("10.9.0.1")
	require.NoError(t, kernel.Follow(podAddr, absent))
	s := &source{name: "test"}
	s.has(endpointAt(podAddr, webID))
	a := newAgent(t, "", kernel, s)
	a.start(t)
	defer a.stop(t)
	a.complete()
	require.EventuallyWithT(t, func(t *assert) { require.Contains(t, a.degraded("kernel"), bpf.ErrInUse.Error()) }, patience, tick)
	<-a.service.engine.settled
	require.False(t, a.initialized(), "what that one has resolved isn't known yet")

	kernel.let(nil)
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, a.initialized())
		require.Equal(t, webID, a.inMap(podAddr))
		require.False(t, kernel.follows(absent))
		require.True(t, kernel.looksAt("10.2.0.0/24"))
		require.NotContains(t, a.degraded("kernel"), bpf.ErrInUse.Error())
	}, patience, tick)
	kernel.signals <- []bpf.Miss{{Addr: podAddr, Side: bpf.SideDestination}} // and they are read
}

// TestMapComesUpLate has cilium-agent pin its map after this agent has started, and pin
// another one later.
func TestMapComesUpLate(t *testing.T) {
	root := bpfRoot(t)
	kernel := &opener{handKernel: newHandKernel()}
	s := &source{name: "test"}
	s.has(endpointAt(podAddr, webID))
	a := newAgent(t, root, kernel, s, func(c *Config) { c.IPCacheMap = "" })
	a.start(t)
	defer a.stop(t)
	a.complete()
	<-a.service.engine.settled
	own, ok := a.ipcache.PinPath()
	require.True(t, ok)
	require.Equal(t, own, kernel.reads())
	kernel.signals <- []bpf.Miss{{Addr: podAddr, Side: bpf.SideDestination}}
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, kernel.follows(podAddr))
		require.EqualValues(t, 2, kernel.jobs.Load())
	}, patience, tick)
	require.Empty(t, a.degraded("kernel"))

	upstreams := filepath.Join(root, ipcache.AgentMap)
	require.NoError(t, os.MkdirAll(upstreams, 0o700))
	require.NoError(t, kernel.Forget(podAddr)) // as if it were opened only now
	require.EventuallyWithT(t, func(t *assert) {
		require.Equal(t, upstreams, kernel.reads())
		require.Contains(t, a.degraded("kernel"), errOnlyRead.Error())
		require.True(t, kernel.follows(podAddr))
		require.EqualValues(t, 2, kernel.jobs.Load())
	}, patience, tick)
	require.Zero(t, kernel.unfinished.Load(), "it is closed under nobody")
	kernel.signals <- []bpf.Miss{{Addr: podAddr, Side: bpf.SideDestination}}

	require.NoError(t, os.Remove(upstreams))
	require.EventuallyWithT(t, func(t *assert) {
		require.Equal(t, own, kernel.reads())
		require.Empty(t, a.degraded("kernel"))
	}, patience, tick)
}

// TestStop: nobody works with the kernel's side when it is closed, and nobody is told
// afterwards that nothing is used.
func TestStop(t *testing.T) {
	kernel := &opener{handKernel: newHandKernel()}
	s := &source{name: "test"}
	s.has(endpointAt(podAddr, webID))
	a := newAgent(t, "", kernel, s)
	a.start(t)
	a.complete()
	<-a.service.engine.settled
	kernel.signals <- []bpf.Miss{{Addr: podAddr, Side: bpf.SideDestination}}
	require.EventuallyWithT(t, func(t *assert) {
		require.True(t, kernel.follows(podAddr))
		require.EqualValues(t, 2, kernel.jobs.Load())
	}, patience, tick)
	a.stop(t)
	require.Zero(t, kernel.unfinished.Load())
	_, err := a.service.kernel.LastSeen()
	require.ErrorIs(t, err, bpf.ErrClosed)
	e := a.service.engine
	_, entry, _ := e.entries.addresses.GetOldest()
	due := *entry.Row // the other one is in the table
	due.Until = time.Time{}
	entry.Row = &due
	require.ErrorIs(t, e.expireDue(), bpf.ErrClosed)
	require.True(t, e.entries.addresses.Contains(podAddr), "it may be in use")
}

func TestOff(t *testing.T) {
	t.Run("in the kernel", func(t *testing.T) {
		root := bpfRoot(t)
		kernel := &opener{handKernel: newHandKernel()}
		a := newAgent(t, root, kernel, &source{}, func(c *Config) { c.Enable = false })
		a.start(t)
		defer a.stop(t)
		require.Equal(t, []string{root + "/waggle/" + directory}, kernel.removed)
		require.EventuallyWithT(t, func(t *assert) {
			done, _ := a.tables.Endpoints.Initialized(a.db.ReadTxn())
			require.True(t, done)
		}, patience, tick)
		_, err := a.service.List()
		require.ErrorIs(t, err, errOff)
	})
	t.Run("in memory", func(t *testing.T) {
		kernel := &opener{handKernel: newHandKernel()}
		a := newAgent(t, "", kernel, &source{}, func(c *Config) { c.Enable = false })
		a.start(t)
		defer a.stop(t)
		require.Equal(t, []string{a.service.dir()}, kernel.removed, "an earlier process may have had its map in the kernel")
	})
	t.Run("in use by another agent", func(t *testing.T) {
		kernel := &opener{handKernel: newHandKernel(), fails: bpf.ErrInUse}
		a := newAgent(t, "", kernel, &source{}, func(c *Config) { c.Enable = false })
		a.start(t)
		defer a.stop(t)
		require.Empty(t, a.degraded("kernel"))
	})
	t.Run("a build without BPF", func(t *testing.T) {
		var said strings.Builder
		log := slog.New(slog.NewTextHandler(&said, nil))
		require.NoError(t, NotInKernel{}.Remove(log, filepath.Join(t.TempDir(), "none")))
		require.Empty(t, said.String())
		require.NoError(t, NotInKernel{}.Remove(log, t.TempDir()))
		require.Contains(t, said.String(), "stay in the kernel")
	})
}
