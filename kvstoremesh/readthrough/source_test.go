// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// rig is a remote cluster's real etcd, which counts what it is asked, and a source that
// asks it.
type rig struct {
	t      testing.TB
	client *etcd.Client
	mesh   *fixed
	clock  *clocktesting.FakePassiveClock
	source *source

	asked, now, most atomic.Int64
	mu               sync.Mutex
	// held is what keeps the etcd from answering; nil is nothing.
	held chan struct{}
}

// fixed stands in for remote.Mesh, so that a test says what is connected.
type fixed struct {
	mu    sync.Mutex
	conns map[string]*remote.Connection // nil: configured, and not connected
}

func (f *fixed) Connection(cluster string) (remote.Connection, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if conn := f.conns[cluster]; conn != nil {
		return *conn, true
	}
	return remote.Connection{}, false
}

func (f *fixed) Configured(cluster string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.conns[cluster]
	return ok
}

// edit changes the connection to the cluster north.
func (f *fixed) edit(edit func(*remote.Connection)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn := *f.conns["north"]
	edit(&conn)
	f.conns["north"] = &conn
}

func newRig(t testing.TB, config Config) *rig {
	r := &rig{t: t, clock: clocktesting.NewFakePassiveClock(time.Now())}
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0",
		GRPC: []grpc.ServerOption{grpc.ChainUnaryInterceptor(r.intercept)}})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	r.client, err = etcd.NewClient(slog.New(slog.DiscardHandler), etcd.ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.client.Close()) })
	r.mesh = &fixed{conns: map[string]*remote.Connection{
		"north": {Cluster: "north", Client: r.client, Config: wire.ClusterConfig{ID: 1, Region: "eu"}},
		"away":  nil,
	}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r.source = newSource(ctx, r.mesh, wire.ClusterInfo{ID: 9, Name: "local", MaxConnectedClusters: 255}, "us", config, newMetrics())
	r.source.cache.clock = r.clock
	r.put(wire.ClusterConfigKey("north"), northConfig)
	r.put(canary(wire.Endpoints), "now")
	r.put(canary(wire.Identities), "now")
	return r
}

const northConfig = `{"id":1,"capabilities":{"syncedCanaries":true},"region":"eu"}`

func canary(resource wire.Resource) string { return wire.CanaryKey(resource, "north", false) }

// intercept counts the transactions, of which only look-ups are any, and holds them up.
func (r *rig) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, ok := req.(*pb.TxnRequest); !ok {
		return handler(ctx, req)
	}
	r.asked.Add(1)
	now := r.now.Add(1)
	defer r.now.Add(-1)
	for most := r.most.Load(); now > most && !r.most.CompareAndSwap(most, now); most = r.most.Load() {
	}
	r.mu.Lock()
	held := r.held
	r.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return handler(ctx, req)
}

// hold has the etcd answer nothing until the returned function is called.
func (r *rig) hold() (release func()) {
	held := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = held
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held = nil
		close(held)
	})
}

func (r *rig) put(key, value string) {
	r.t.Helper()
	_, err := r.client.Etcd().Put(r.t.Context(), key, value)
	require.NoError(r.t, err)
}

// value is what is answered, "" for nothing.
func (r *rig) value(lookup wire.Lookup) string {
	r.t.Helper()
	a, err := r.ask(lookup)
	require.NoError(r.t, err)
	require.NotNil(r.t, a.header)
	if a.kv == nil {
		return ""
	}
	return string(a.kv.Value)
}

// refused is with what code and words there is no answer.
func (r *rig) refused(lookup wire.Lookup, code codes.Code, text string) {
	r.t.Helper()
	_, err := r.ask(lookup)
	require.Equal(r.t, code, status.Code(err), "%v", err)
	require.ErrorContains(r.t, err, text)
}

func pod(n int) wire.Lookup {
	return wire.EndpointLookup("north", netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}))
}

const (
	pushed   = "cilium/state/ip/v1/default/"
	onDemand = wire.OnDemandEndpointPrefix
)

// ask asks for one thing.
func (r *rig) ask(lookup wire.Lookup) (answer, error) {
	got := r.source.ask(lookup)[0]
	return got.answer, got.err
}

// TestPlaces: what is pushed counts before what is on demand.
func TestPlaces(t *testing.T) {
	r := newRig(t, Config{})
	require.Empty(t, r.value(pod(1)))
	r.put(onDemand+"10.1.0.1", "on demand")
	require.Equal(t, "on demand", r.value(pod(1)))
	r.put(pushed+"10.1.0.1", "pushed")
	require.Equal(t, "pushed", r.value(pod(1)))
	r.put(wire.OnDemandIdentityPrefix+"65600", "labels")
	require.Equal(t, "labels", r.value(wire.IdentityLookup("north", 65600)))
	r.put(pushed+"fd00::1", "v6")
	require.Equal(t, "v6", r.value(wire.EndpointLookup("north", netip.MustParseAddr("fd00::1"))))
}

// TestEmptied: an etcd that was emptied has nothing of what there is, and doesn't say so
// before everything is there again.
func TestEmptied(t *testing.T) {
	r := newRig(t, Config{})
	identity := wire.IdentityLookup("north", 65600)
	require.Empty(t, r.value(pod(1)))
	_, err := r.client.Etcd().Delete(t.Context(), wire.BasePrefix, clientv3.WithPrefix())
	require.NoError(t, err)
	for range 2 * r.source.limits.failures { // which are none: the cluster is there
		r.refused(pod(1), codes.Aborted, "configuration not found")
	}
	r.put(wire.ClusterConfigKey("north"), northConfig)
	r.refused(pod(1), codes.Aborted, `"north" doesn't say that all of its endpoints are there`)
	r.refused(identity, codes.Aborted, `all of its identities are there`)
	r.put(onDemand+"10.1.0.1", "there")
	require.Equal(t, "there", r.value(pod(1)), "what is there is there")
	r.put(canary(wire.Endpoints), "now")
	require.Empty(t, r.value(pod(2)))
	r.refused(identity, codes.Aborted, `all of its identities are there`)
	r.put(canary(wire.Identities), "now")
	require.Empty(t, r.value(identity))
	r.put(wire.ClusterConfigKey("north"), `{"id":2}`)
	r.refused(pod(2), codes.Aborted, "has the ID 2 by now, not 1")
}

// TestNotAsked: what isn't to be asked isn't, and each is told why.
func TestNotAsked(t *testing.T) {
	r := newRig(t, Config{})
	r.refused(wire.IdentityLookup("north", 1<<17), codes.InvalidArgument, "outside 65536..131071 of cluster \"north\"")
	r.refused(wire.EndpointLookup("nobody", netip.MustParseAddr("10.1.0.1")), codes.NotFound, `no remote cluster "nobody"`)
	r.refused(wire.EndpointLookup("away", netip.MustParseAddr("10.1.0.1")), codes.Unavailable, `"away" is not connected`)
	r.mesh.edit(func(c *remote.Connection) { c.Config.Capabilities.Cached = true })
	r.refused(pod(1), codes.FailedPrecondition, `"north" is read from a cache`)
	require.Zero(t, r.asked.Load())
}

// TestRegion: what is regional elsewhere isn't there, as it isn't copied.
func TestRegion(t *testing.T) {
	const regional = `{"IP":"10.1.0.1","SyncScope":"regional"}`
	r := newRig(t, Config{})
	r.put(pushed+"10.1.0.1", regional)
	r.put(onDemand+"10.1.0.2", regional)
	r.put(wire.OnDemandIdentityPrefix+"65600", regional) // which is no endpoint
	require.Empty(t, r.value(pod(1)))
	require.Empty(t, r.value(pod(2)))
	require.Equal(t, regional, r.value(wire.IdentityLookup("north", 65600)))
	r.mesh.edit(func(c *remote.Connection) { c.Config.Region = "us" })
	require.Equal(t, regional, r.value(pod(1)))
	r.mesh.edit(func(c *remote.Connection) { c.Config.Region = "" })
	require.Equal(t, regional, r.value(pod(2)))
}

// TestTooLarge: a value larger than any that is of use isn't passed on, and one that
// would fill memory isn't read.
func TestTooLarge(t *testing.T) {
	r := newRig(t, Config{})
	r.put(pushed+"10.1.0.1", strings.Repeat("x", wire.MaxLookupBytes))
	require.Len(t, r.value(pod(1)), wire.MaxLookupBytes)
	r.put(pushed+"10.1.0.1", strings.Repeat("x", wire.MaxLookupBytes+1))
	r.refused(pod(1), codes.FailedPrecondition, `refusing endpoints "10.1.0.1": too-large`)
	for range 2 * r.source.limits.failures { // which are none: the cluster is there
		large := strings.Repeat("x", 1200<<10)
		r.put(pushed+"10.1.0.2", large)
		r.put(onDemand+"10.1.0.2", large)
		r.refused(pod(2), codes.FailedPrecondition, `refusing endpoints "10.1.0.2": too-large`)
	}
	r.put(pushed+"10.1.0.3", "good")
	require.Equal(t, "good", r.value(pod(3)))
}

// TestOneFlight: however many ask for the same at a time, the remote cluster is asked
// once.
func TestOneFlight(t *testing.T) {
	const askers = 64
	r := newRig(t, DefaultConfig)
	r.put(onDemand+"10.1.0.1", "there")
	release := r.hold()
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			a, err := r.ask(pod(1))
			if err != nil || a.kv == nil {
				t.Errorf("asking: %v, %v", a.kv, err)
			}
		})
	}
	require.Eventually(t, func() bool { return r.asked.Load() == 1 }, patience, tick)
	release()
	wg.Wait()
	require.EqualValues(t, 1, r.asked.Load())
}

// TestTogether: what is asked for in one request is answered each by itself, of what can
// be at hand, under way, or new; and the remote cluster is asked one question.
func TestTogether(t *testing.T) {
	r := newRig(t, DefaultConfig)
	for n := range 60 {
		r.put(onDemand+fmt.Sprint("10.1.0.", n), fmt.Sprint("pod ", n))
	}
	require.Equal(t, "pod 7", r.value(pod(7)))
	release := r.hold()
	var wg sync.WaitGroup
	wg.Go(func() {
		a, err := r.ask(pod(8))
		if err != nil || a.kv == nil {
			t.Errorf("asking: %v, %v", a.kv, err)
		}
	})
	require.Eventually(t, func() bool { return r.asked.Load() == 2 }, patience, tick)
	lookups := []wire.Lookup{
		wire.EndpointLookup("away", netip.MustParseAddr("10.1.0.1")), wire.IdentityLookup("north", 1<<17), pod(250), pod(8), pod(9), pod(9),
	}
	for n := range 60 {
		lookups = append(lookups, pod(n))
	}
	var got []result
	wg.Go(func() { got = r.source.ask(lookups...) })
	require.Eventually(t, func() bool { return r.asked.Load() == 3 }, patience, tick)
	release()
	wg.Wait()
	require.EqualValues(t, 3, r.asked.Load())
	require.Equal(t, codes.Unavailable, status.Code(got[0].err))
	require.Equal(t, codes.InvalidArgument, status.Code(got[1].err))
	require.NoError(t, got[2].err)
	require.Nil(t, got[2].kv)
	for i, n := range []int{8, 9, 9} {
		require.NoError(t, got[3+i].err)
		require.Equal(t, fmt.Sprint("pod ", n), string(got[3+i].kv.Value))
	}
	for n, one := range got[6:] {
		require.NoError(t, one.err)
		require.Equal(t, fmt.Sprint("pod ", n), string(one.kv.Value))
	}
	require.Empty(t, r.source.flights.byKey)

	// One that is refused is no other's failure.
	r.put(onDemand+"10.1.0.100", strings.Repeat("x", wire.MaxLookupBytes+1))
	got = r.source.ask(pod(100), pod(101))
	require.Equal(t, codes.FailedPrecondition, status.Code(got[0].err))
	require.NoError(t, got[1].err)
}

const patience, tick = 2 * time.Minute, 5 * time.Millisecond

// TestCached: found and not found are given again for a moment, and asked for again
// after that; and what another connection has told isn't given.
func TestCached(t *testing.T) {
	r := newRig(t, Config{CacheTTL: time.Second})
	ask := func(want string, asked int64) {
		t.Helper()
		require.Equal(t, want, r.value(pod(1)))
		require.Equal(t, asked, r.asked.Load())
	}
	ask("", 1)
	r.put(onDemand+"10.1.0.1", "one")
	ask("", 1)
	r.clock.SetTime(r.clock.Now().Add(time.Second))
	ask("one", 2)
	r.put(onDemand+"10.1.0.1", "two")
	r.clock.SetTime(r.clock.Now().Add(time.Second - 1))
	ask("one", 2)
	r.clock.SetTime(r.clock.Now().Add(1))
	ask("two", 3)
	ask("two", 3)
	r.mesh.edit(func(c *remote.Connection) { c.Config.ID = 2 })
	ask("two", 4)
	r.mesh.edit(func(c *remote.Connection) { c.Config.ID = 1 })
	ask("two", 5)
}

// TestNotCached: with a TTL of 0 each is a question.
func TestNotCached(t *testing.T) {
	r := newRig(t, Config{})
	for n := range int64(3) {
		require.Empty(t, r.value(pod(1)))
		require.Equal(t, n+1, r.asked.Load())
	}
}

// TestSlots: a cluster is asked so much at a time, and what doesn't find a place in time
// is told so. Of two look-ups at a time none shares a round trip.
func TestSlots(t *testing.T) {
	const askers, slots = 64, 2
	r := newRig(t, Config{})
	r.source.limits.slots, r.source.limits.timeout = slots, time.Minute
	release := r.hold()
	var wg sync.WaitGroup
	for n := range askers {
		wg.Go(func() {
			if _, err := r.ask(pod(n)); err != nil {
				t.Errorf("asking: %v", err)
			}
		})
	}
	require.Eventually(t, func() bool { return r.now.Load() == slots }, patience, tick)
	release()
	wg.Wait()
	require.EqualValues(t, askers, r.asked.Load())
	require.EqualValues(t, slots, r.most.Load())
}

// TestAway: an etcd that doesn't answer is asked a few times, and then left alone; one
// question finds out that it is back.
func TestAway(t *testing.T) {
	r := newRig(t, Config{})
	limits := &r.source.limits
	limits.timeout, limits.pause, limits.failures = 20*time.Millisecond, time.Hour, 3
	r.put(onDemand+"10.1.0.1", "there")
	release := r.hold()
	for range 3 {
		r.refused(pod(1), codes.Unavailable, `remote cluster "north" can't be asked`)
	}
	for range 1000 {
		r.refused(pod(1), codes.Unavailable, "isn't asked for a moment")
	}
	require.LessOrEqual(t, r.asked.Load(), int64(3)) // a question may have ended on its way
	release()

	// Another connection begins anew.
	limits.timeout, limits.pause = time.Minute, time.Millisecond
	r.mesh.edit(func(c *remote.Connection) { c.Config.ID = 2 })
	require.Equal(t, "there", r.value(pod(1)))

	limits.timeout = 20 * time.Millisecond
	release = r.hold()
	for range 3 {
		r.refused(pod(1), codes.Unavailable, "north")
	}
	release()
	limits.timeout = time.Minute
	require.Eventually(t, func() bool {
		a, err := r.ask(pod(1))
		return err == nil && a.kv != nil
	}, patience, tick)
}

// TestStopped: who waits for a remote cluster isn't waited for when the process ends.
func TestStopped(t *testing.T) {
	r := newRig(t, Config{})
	r.source.limits.timeout = time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	r.source.stopped = ctx
	defer r.hold()()
	done := make(chan error)
	go func() {
		_, err := r.ask(pod(1))
		done <- err
	}()
	require.Eventually(t, func() bool { return r.asked.Load() == 1 }, patience, tick)
	cancel()
	require.Equal(t, codes.Unavailable, status.Code(<-done))
}

// TestCacheIsBounded: by number and by bytes, what is oldest going first; what is over
// goes by itself.
func TestCacheIsBounded(t *testing.T) {
	now := clocktesting.NewFakePassiveClock(time.Now())
	c := newCache(time.Second, now)
	for n := range 2 * cacheEntries {
		c.put(named(fmt.Sprint(n)), answer{})
	}
	require.Equal(t, cacheEntries, c.answers.Len())
	large := answer{kv: keyValue(1 << 20)}
	for n := range 100 {
		c.put(named(fmt.Sprint("large", n)), large)
		require.LessOrEqual(t, c.bytes, cacheBytes)
	}
	require.Less(t, c.answers.Len(), 20)
	_, ok := c.get(named("large99"))
	require.True(t, ok)
	c.put(named("large99"), answer{})
	now.SetTime(now.Now().Add(time.Second))
	c.put(named("last"), answer{})
	require.Equal(t, 1, c.answers.Len())
	require.Equal(t, entryBytes+len("last"), c.bytes)
}

// TestAbsencesAreForgottenSooner: an endpoint may be there by the next packet.
func TestAbsencesAreForgottenSooner(t *testing.T) {
	for ttl, absent := range map[time.Duration]time.Duration{time.Second: absentTTL, absentTTL / 2: absentTTL / 2} {
		now := clocktesting.NewFakePassiveClock(time.Now())
		c := newCache(ttl, now)
		c.put(named("found"), answer{kv: keyValue(1)})
		c.put(named("absent"), answer{})
		now.SetTime(now.Now().Add(absent - 1))
		_, ok := c.get(named("absent"))
		require.True(t, ok)
		now.SetTime(now.Now().Add(1))
		_, ok = c.get(named("absent"))
		require.False(t, ok)
		_, ok = c.get(named("found"))
		require.Equal(t, ttl > absent, ok)
	}
}

// BenchmarkLookup is one look-up that the remote cluster is asked for, over loopback.
func BenchmarkLookup(b *testing.B) {
	for name, ttl := range map[string]time.Duration{"asked": 0, "cached": time.Hour} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, Config{CacheTTL: ttl})
			r.put(onDemand+"10.1.0.1", strings.Repeat("x", 200))
			for b.Loop() {
				_ = r.value(pod(1))
			}
		})
	}
}

func keyValue(size int) *mvccpb.KeyValue { return &mvccpb.KeyValue{Value: make([]byte, size)} }

func named(name string) lookupKey { return lookupKey{key: name} }
