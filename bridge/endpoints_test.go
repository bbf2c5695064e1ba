// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/ipcache"
	ipcachemap "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

type noPolicy struct{}

func (noPolicy) TriggerPolicyUpdates(string) {}

// rig has tables and upstream's ipcache, without an agent around it.
type rig struct {
	*endpoints
	db     *statedb.DB
	writer *state.Writer
}

func newRig(t testing.TB, options Options) *rig {
	t.Helper()
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	ipc := ipcache.NewIPCache(&ipcache.Configuration{Context: t.Context(), Logger: log})
	return &rig{newEndpoints(log, db, writer, options, ipc, noPolicy{}, nil), db, writer}
}

// start runs the job until the test ends.
func (r *rig) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	_, health := cell.NewSimpleHealth()
	go func() { ended <- r.run(ctx, health) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// write makes changes, and waits until they are in the ipcache.
func (r *rig) write(t testing.TB, change func(*state.Txn)) {
	t.Helper()
	tx := r.writer.Begin()
	change(tx)
	tx.Commit()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	require.NoError(t, r.waitFor(ctx, r.table.Revision(r.db.ReadTxn())))
}

func endpointAt(address string, id uint32) wire.Endpoint {
	return wire.Endpoint{
		Prefix: state.PrefixOf(netip.MustParseAddr(address)), HostIP: netip.MustParseAddr("172.18.0.2"), Identity: id,
		Namespace: "shop", Pod: "web",
	}
}

// TestSources has an address move between sources, ours and others.
func TestSources(t *testing.T) {
	r := newRig(t, Options{Local: true, Remote: true})
	local := r.writer.Origin("west", 3, state.SourceLocal)
	remote := r.writer.Origin("north", 1, state.SourceClusterMesh)
	resolved := r.writer.Origin("north", 1, state.SourceOnDemand)
	r.start(t)
	const address = "10.0.0.1"
	is := func(id identity.NumericIdentity, from source.Source) {
		t.Helper()
		got, _ := r.ipcache.LookupByIP(address)
		require.Equal(t, id, got.ID)
		require.Equal(t, from, got.Source)
	}

	r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(resolved, state.Owner{}, endpointAt(address, 70000)) })
	is(70000, source.ClusterMesh)
	r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(remote, state.Owner{}, endpointAt(address, 70001)) })
	is(70001, source.ClusterMesh)
	r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(local, state.Owner{}, endpointAt(address, 0)) })
	is(identity.ReservedIdentityUnmanaged, source.CustomResource)
	// The weaker one is back, behind a source that wouldn't let it.
	r.write(t, func(tx *state.Txn) { tx.DeleteEndpoint(local, state.Owner{}, endpointAt(address, 0).Prefix) })
	is(70001, source.ClusterMesh)

	// Of one that is on no node there is no entry, nor what another row has said.
	nowhere := endpointAt(address, 70003)
	nowhere.HostIP = netip.Addr{}
	r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(local, state.Owner{}, nowhere) })
	_, found := r.ipcache.LookupByIP(address)
	require.False(t, found)
	r.write(t, func(tx *state.Txn) { tx.DeleteEndpoint(local, state.Owner{}, nowhere.Prefix) })
	is(70001, source.ClusterMesh)

	// The agent's own endpoint has it, until it goes.
	r.ipcache.Upsert(address, nil, 0, nil, ipcache.Identity{ID: 5, Source: source.Local})
	r.write(t, func(tx *state.Txn) { tx.UpsertEndpoint(remote, state.Owner{}, endpointAt(address, 70002)) })
	is(5, source.Local)
	r.ipcache.Delete(address, source.Local) //nolint:staticcheck // as the agent does
	require.Eventually(t, func() bool {
		got, _ := r.ipcache.LookupByIP(address)
		// That it is ours again is noted after it is.
		return got.ID == 70002 && r.listener.contested() == 0
	}, time.Minute, time.Millisecond)

	r.write(t, func(tx *state.Txn) { tx.DeleteEndpoint(remote, state.Owner{}, endpointAt(address, 0).Prefix) })
	_, found = r.ipcache.LookupByIP(address)
	require.False(t, found)
}

// TestHeldAddressIsFreedMeanwhile: another source takes an address and lets go of it while
// we change it, at any point of that.
func TestHeldAddressIsFreedMeanwhile(t *testing.T) {
	const address = "10.0.0.1"
	for name, test := range map[string]struct{ before, meanwhile []bool }{
		"it let go when we were refused": {before: []bool{true}, meanwhile: []bool{false}},
		"it came after us":               {meanwhile: []bool{true, false}},
		"it came back":                   {before: []bool{true}, meanwhile: []bool{false, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{Local: true, Remote: true})
			r.ipcache.AddListener(r.listener)
			agent := func(holds []bool) {
				for _, has := range holds {
					if has {
						_, err := r.ipcache.Upsert(address, nil, 0, nil, ipcache.Identity{ID: 5, Source: source.Local})
						require.NoError(t, err)
					} else {
						r.ipcache.Delete(address, source.Local) //nolint:staticcheck // as the agent does
					}
				}
			}
			tx := r.writer.Begin()
			tx.UpsertEndpoint(r.writer.Origin("north", 1, state.SourceClusterMesh), state.Owner{}, endpointAt(address, 70001))
			tx.Commit()
			row, _, found := r.table.Get(r.db.ReadTxn(), state.EndpointByPrefix(endpointAt(address, 0).Prefix))
			require.True(t, found)
			entry, ok, err := newEntry(row)
			require.NoError(t, err)
			require.True(t, ok)

			// What put does, with the agent in between.
			agent(test.before)
			r.listener.take()
			b := newBatch(r.endpoints)
			r.listener.begin(row.Prefix())
			_, err = b.upsert(entry)
			require.Equal(t, len(test.before) > 0, err != nil)
			agent(test.meanwhile)
			r.listener.contest(row.Prefix(), err != nil)
			r.listener.end()

			require.Contains(t, r.listener.take(), row.Prefix())
			b.put(row)
			got, _ := r.ipcache.LookupByIP(address)
			require.EqualValues(t, 70001, got.ID)
			require.Zero(t, r.listener.contested())
			require.Equal(t, 1, r.listener.size())
			require.Empty(t, r.listener.take(), "it is written again and again")
		})
	}
}

// TestListenerHearsWhileItIsAsked: what is freed isn't lost, nor read while it is written
// to, however the two fall together.
func TestListenerHearsWhileItIsAsked(t *testing.T) {
	const count = 10_000
	l := newListener(Options{}.writes)
	var hears sync.WaitGroup
	hears.Go(func() {
		for n := range count {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
			l.OnIPIdentityCacheChange(ipcache.Delete, cmtypes.NewLocalPrefixCluster(netip.PrefixFrom(addr, 32)),
				nil, nil, nil, ipcache.Identity{}, 0, nil, 0)
		}
	})
	freed := 0
	for freed < count {
		<-l.wake
		for range l.take() {
			freed++
		}
	}
	hears.Wait()
	require.Equal(t, count, freed)
	require.Empty(t, l.take())
}

// TestOthersAreLeftAlone has rows that the agent reads itself.
func TestOthersAreLeftAlone(t *testing.T) {
	r := newRig(t, Options{Remote: true})
	local := r.writer.Origin("west", 3, state.SourceLocal)
	r.start(t)
	r.ipcache.Upsert("10.0.0.1", nil, 0, nil, ipcache.Identity{ID: 4711, Source: source.CustomResource})
	for _, change := range []func(*state.Txn){
		func(tx *state.Txn) { tx.UpsertEndpoint(local, state.Owner{}, endpointAt("10.0.0.1", 200)) },
		func(tx *state.Txn) { tx.DeleteEndpoint(local, state.Owner{}, endpointAt("10.0.0.1", 200).Prefix) },
	} {
		r.write(t, change)
		got, _ := r.ipcache.LookupByIP("10.0.0.1")
		require.EqualValues(t, 4711, got.ID)
	}
}

// manyEndpoints is what a large mesh has.
func manyEndpoints(origin *state.Origin, n int) func(*state.Txn) {
	return func(tx *state.Txn) {
		for i := range n {
			var ip [4]byte
			binary.BigEndian.PutUint32(ip[:], 10<<24+uint32(i))
			tx.UpsertEndpoint(origin, state.Owner{}, wire.Endpoint{
				Prefix: netip.PrefixFrom(netip.AddrFrom4(ip), 32), HostIP: netip.AddrFrom4([4]byte{172, 18, byte(i >> 8), byte(i)}),
				Identity: 1<<16 + 256 + uint32(i%1000), Namespace: "namespace-" + strconv.Itoa(i%100), Pod: "pod-" + strconv.Itoa(i),
			})
		}
	}
}

// TestOverflow has more endpoints than the agent's map has room for, which health says, and
// the log once.
func TestOverflow(t *testing.T) {
	r := newRig(t, Options{Remote: true})
	origin := r.writer.Origin("north", 1, state.SourceClusterMesh)
	require.Equal(t, ipcachemap.MaxEntries, r.room)
	r.room, r.capacityInterval = 1000, time.Millisecond
	health, told := cell.NewSimpleHealth()
	r.capacity = health
	var logged bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&logged, nil))
	r.start(t)
	r.write(t, manyEndpoints(origin, 1088))
	require.Equal(t, 88, r.overflow())

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	_, own := cell.NewSimpleHealth()
	go func() { ended <- r.reportCapacity(ctx, own) }()
	says := func(level cell.Level, status, reason string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			told.Lock()
			defer told.Unlock()
			require.Equal(c, level, told.Level)
			require.Equal(c, status, told.Status)
			if reason != "" {
				require.EqualError(c, told.Error, reason)
			}
		}, time.Minute, time.Millisecond)
	}
	const full = "The ipcache is larger than its map"
	says(cell.StatusDegraded, full, "88 of 1088 entries don't fit into a map of 1000")
	r.write(t, manyEndpoints(origin, 1089))
	says(cell.StatusDegraded, full, "89 of 1089 entries don't fit into a map of 1000")
	r.write(t, func(tx *state.Txn) { tx.DeleteOrigin(origin, wire.Endpoints) })
	require.Zero(t, r.overflow())
	says(cell.StatusOK, "0 of 1000 entries", "")
	cancel()
	require.NoError(t, <-ended)
	require.Equal(t, 1, strings.Count(logged.String(), "\n"), logged.String())
	require.Contains(t, logged.String(), "level=ERROR")
	require.Contains(t, logged.String(), "missing=88 capacity=1000")
}

// BenchmarkEndpoints is 500,000 endpoints from the table to upstream's ipcache.
func BenchmarkEndpoints(b *testing.B) {
	const n = 500_000
	for b.Loop() {
		b.StopTimer()
		r := newRig(b, Options{Remote: true})
		tx := r.writer.Begin()
		manyEndpoints(r.writer.Origin("north", 1, state.SourceClusterMesh), n)(tx)
		tx.Commit()
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error)
		_, health := cell.NewSimpleHealth()
		b.StartTimer()
		go func() { ended <- r.run(ctx, health) }()
		require.NoError(b, r.waitSynced(b.Context()))
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-live")
		cancel()
		require.NoError(b, <-ended)
		b.StartTimer()
	}
}
