// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	testassert "github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

const (
	// patience is how long a condition may take; it only matters for failures.
	patience = time.Minute
	tick     = 2 * time.Millisecond

	redID, blueID uint32 = 2, 3
	// Identities of red and blue, in a mesh of 255 clusters.
	webID     = redID<<16 + 10
	dbID      = redID<<16 + 11
	blueWebID = blueID<<16 + 10
)

var (
	podAddr   = netip.MustParseAddr("10.2.0.10")
	otherAddr = netip.MustParseAddr("10.2.0.11")
	blueAddr  = netip.MustParseAddr("10.3.0.10")
)

const (
	pod      uint32 = 7
	otherPod uint32 = 8
	uplink   uint32 = 9
)

type assert = testassert.CollectT

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Started by the init functions of packages that etcd and upstream import.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// handKernel is the kernel's side, driven by hand: the engine's tests are about what
// user space does with signals. The real one is tested in ipcache/bpf, and both together
// in testing.
type handKernel struct {
	signals chan []bpf.Miss

	mu       sync.Mutex
	cidrs    map[netip.Prefix]uint32
	followed map[netip.Addr]time.Duration
	fails    error
	room     int // how many can be followed; 0 is any number
}

func (k *handKernel) SetCIDRs(cidrs map[netip.Prefix]uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fails != nil {
		return k.fails
	}
	k.cidrs = cidrs
	return nil
}

func (k *handKernel) CIDRs() (map[netip.Prefix]uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.cidrs), k.fails
}

// looksAt says whether misses of addresses of a prefix are told of.
func (k *handKernel) looksAt(prefix string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.cidrs[netip.MustParsePrefix(prefix)]
	return ok
}

func (k *handKernel) Read(ctx context.Context, handle func([]bpf.Miss)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case misses := <-k.signals:
			handle(misses)
		}
	}
}

func (k *handKernel) Follow(addrs ...netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, addr := range addrs {
		if _, ok := k.followed[addr]; !ok {
			if k.room > 0 && len(k.followed) >= k.room {
				return errors.New("no room")
			}
			k.followed[addr] = 0
		}
	}
	return nil
}

func (k *handKernel) Forget(addrs ...netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, addr := range addrs {
		delete(k.followed, addr)
	}
	return nil
}

func (k *handKernel) LastSeen() (map[netip.Addr]time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := map[netip.Addr]time.Duration{}
	for addr, at := range k.followed {
		seen[addr] = at
	}
	return seen, k.fails
}

func (k *handKernel) EachSeen(each func(netip.Addr, time.Duration)) error {
	seen, err := k.LastSeen()
	for addr, at := range seen {
		each(addr, at)
	}
	return err
}

func (k *handKernel) Stats() (bpf.Stats, error) { return bpf.Stats{}, nil }

// used is what a packet does to an address that is followed.
func (k *handKernel) used(addr netip.Addr, at time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.followed[addr]; ok {
		k.followed[addr] = at
	}
}

func (k *handKernel) follows(addr netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.followed[addr]
	return ok
}

func (k *handKernel) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = err
}

// source is a resolver that answers as a test says.
type source struct {
	name  string
	asked atomic.Int64
	// requests are those with which it was asked.
	requests atomic.Int64
	mu       sync.Mutex
	with     func(context.Context, Question) (Answer, error)
}

func (s *source) Name() string { return s.name }

func (s *source) Resolve(ctx context.Context, questions []Question) []Resolved {
	s.requests.Add(1)
	return OneByOne(ctx, questions, s.resolve)
}

func (s *source) resolve(ctx context.Context, q Question) (Answer, error) {
	s.asked.Add(1)
	s.mu.Lock()
	with := s.with
	s.mu.Unlock()
	if with == nil {
		return Answer{}, ErrNotFound
	}
	return with(ctx, q)
}

func (s *source) answer(with func(context.Context, Question) (Answer, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.with = with
}

// has lets the source have endpoints, and the labels of their identities.
func (s *source) has(endpoints ...wire.Endpoint) {
	s.answer(func(_ context.Context, q Question) (a Answer, _ error) {
		for i := range endpoints {
			if ep := endpoints[i]; ep.Prefix == state.PrefixOf(q.Addr) {
				a.Endpoint = &ep
				a.Identities = append(a.Identities, identityOf(q.Cluster, ep.Identity))
			}
			if id := endpoints[i].Identity; id == q.Identity && !a.hasIdentity(id) {
				a.Identities = append(a.Identities, identityOf(q.Cluster, id))
			}
		}
		if a.Endpoint == nil && a.Identities == nil {
			return a, ErrNotFound
		}
		return a, nil
	})
}

func identityOf(cluster string, id uint32) wire.Identity {
	return wire.Identity{ID: id, Labels: "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=" + cluster + ";"}
}

func endpointAt(addr netip.Addr, identity uint32) wire.Endpoint {
	return wire.Endpoint{
		Prefix: state.PrefixOf(addr), HostIP: netip.MustParseAddr("172.16.0.2"), Identity: identity,
		Namespace: "shop", Pod: "web",
	}
}

// recorder keeps what parts say of their health.
type recorder struct {
	scope string
	says  *sync.Map
}

func (r *recorder) NewScope(name string) cell.Health { return &recorder{name, r.says} }
func (r *recorder) OK(string)                        { r.says.Store(r.scope, "") }
func (r *recorder) Stopped(string)                   {}
func (r *recorder) Close()                           {}
func (r *recorder) Degraded(reason string, err error) {
	r.says.Store(r.scope, reason+": "+err.Error())
}

// degraded is what a part complains about; empty if it doesn't.
func (f *fixture) degraded(part string) string {
	says, _ := f.health.says.Load(part)
	text, _ := says.(string)
	return text
}

// fixture is an engine with real tables. Its clock stands still but for step.
type fixture struct {
	*testing.T
	db     *statedb.DB
	writer *state.Writer
	tables state.Tables
	engine *engine
	kernel *handKernel
	source *source
	clock  *testingclock.FakeClock
	health *recorder
	// restored is closed when what was resolved before is dealt with.
	restored chan struct{}
	stop     func()
}

type option func(*settings)

// setup makes an engine of the cluster "home", with nodes of the clusters red and blue
// whose pod CIDRs are 10.2.0.0/24 and 10.3.0.0/24, and starts it.
func setup(t *testing.T, options ...option) *fixture {
	f := prepare(t, options...)
	f.start()
	<-f.engine.settled
	return f
}

func prepare(t *testing.T, options ...option) *fixture {
	f := &fixture{
		T: t, db: statedb.New(), source: &source{name: "local"}, restored: make(chan struct{}),
		kernel: &handKernel{signals: make(chan []bpf.Miss), followed: map[netip.Addr]time.Duration{}},
		clock:  testingclock.NewFakeClock(time.Unix(1700000000, 0)),
	}
	var err error
	f.writer, err = state.NewWriter(f.db)
	require.NoError(t, err)
	f.tables = f.writer.Tables()
	f.join("red", redID, "10.2.0.0/24")
	f.join("blue", blueID, "10.3.0.0/24")
	f.build(options...)
	return f
}

// build makes another engine, as a restart of the process does, with what there is.
func (f *fixture) build(options ...option) {
	var table statedb.RWTable[*Row]
	var err error
	if f.engine != nil {
		table = f.engine.table
	} else {
		table, err = newTable(f.db, "")
		require.NoError(f, err)
	}
	f.health = &recorder{says: &sync.Map{}}
	s := settings{
		log: slog.New(slog.NewTextHandler(f.Output(), nil)), config: DefaultConfig,
		db: f.db, writer: f.writer, table: table, kernel: f.kernel, metrics: newMetrics(), health: f.health,
		local: "home", maxConnectedClusters: 255, clock: f.clock, monotonic: f.monotonic,
	}
	for _, o := range options {
		o(&s)
	}
	f.engine, err = newEngine(s, []IPCacheMissResolver{f.source})
	require.NoError(f, err)
	s.metrics.follow(f.engine)
}

var epoch = time.Unix(1600000000, 0)

func (f *fixture) monotonic() time.Duration { return f.clock.Since(epoch) }

// start runs the jobs until the test ends, or until f.stop.
func (f *fixture) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var jobs errgroup.Group
	e, health := f.engine, f.engine.health
	for name, run := range map[string]func(context.Context, cell.Health) error{
		"resolve": e.run, "pod-cidrs": e.followSources, "away": e.reportAway, "signals": e.readSignals,
		"expiry": e.expire, "restore": e.restart(func() { close(f.restored) }),
	} {
		jobs.Go(func() error { return run(ctx, health.NewScope(name)) })
	}
	f.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(f, jobs.Wait())
	})
	f.Cleanup(f.stop)
}

func (f *fixture) do(fn func(*state.Txn)) {
	tx := f.writer.Begin()
	fn(tx)
	tx.Commit()
}

// join adds a remote cluster with a node of these pod CIDRs.
func (f *fixture) join(cluster string, id uint32, cidrs ...string) {
	node := wire.Node{Name: "n1", Cluster: cluster, ClusterID: id}
	for _, cidr := range cidrs {
		node.PodCIDRs4 = append(node.PodCIDRs4, netip.MustParsePrefix(cidr))
	}
	f.do(func(tx *state.Txn) {
		tx.UpdateRemoteCluster(cluster, func(row *state.RemoteCluster) {
			row.ClusterID = id
			row.Resources[wire.Nodes] = state.ResourceState{Enabled: true, Synced: true}
		})
		tx.UpsertNode(f.writer.Origin(cluster, id, state.SourceClusterMesh), node)
	})
}

// leave removes a remote cluster as ingest does.
func (f *fixture) leave(cluster string, id uint32) {
	f.do(func(tx *state.Txn) {
		tx.DeleteOrigin(f.writer.Origin(cluster, id, state.SourceClusterMesh), wire.Nodes)
		tx.DeleteOrigin(f.writer.Origin(cluster, id, state.SourceClusterMesh), wire.Endpoints)
	})
	f.do(func(tx *state.Txn) { tx.DeleteRemoteCluster(cluster) })
}

// push is what ingest does with an endpoint of red.
func (f *fixture) push(ep wire.Endpoint) {
	f.do(func(tx *state.Txn) {
		origin := f.writer.Origin("red", redID, state.SourceClusterMesh)
		tx.UpsertIdentity(origin, identityOf("red", ep.Identity))
		tx.UpsertEndpoint(origin, state.Owner{}, ep)
	})
}

func (f *fixture) unpush(addr netip.Addr) {
	f.do(func(tx *state.Txn) {
		tx.DeleteEndpoint(f.writer.Origin("red", redID, state.SourceClusterMesh), state.Owner{}, state.PrefixOf(addr))
	})
}

// miss signals packets to addresses, or from them with an identity.
func (f *fixture) miss(misses ...bpf.Miss) {
	for i := range misses {
		if misses[i].Side == 0 {
			misses[i].Side = bpf.SideDestination
		}
		if misses[i].Interface == 0 {
			misses[i].Interface = pod
		}
		misses[i].Time = f.monotonic()
	}
	f.kernel.signals <- misses
}

func to(addr netip.Addr) bpf.Miss { return bpf.Miss{Addr: addr} }

func from(addr netip.Addr, identity uint32) bpf.Miss {
	return bpf.Miss{Addr: addr, Identity: identity, Side: bpf.SideSource, Interface: uplink}
}

// resolve resolves by hand.
func (f *fixture) resolve(addr netip.Addr) Resolution {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := f.engine.Resolve(ctx, addr)
	require.NotEmpty(f, r.Outcome, "%v", err)
	return r
}

// endpoint is the row of an address; nil if there is none.
func (f *fixture) endpoint(addr netip.Addr) *state.Endpoint {
	row, _, _ := f.tables.Endpoints.Get(f.db.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(addr)))
	return row
}

func (f *fixture) identity(id uint32) *state.Identity {
	row, _, _ := f.tables.Identities.Get(f.db.ReadTxn(), state.IdentityByID(id))
	return row
}

func (f *fixture) row(addr netip.Addr) *Row {
	row, _, _ := f.engine.table.Get(f.db.ReadTxn(), RowByAddr(addr))
	return row
}

func (f *fixture) eventually(fn func(t *assert)) {
	f.Helper()
	require.EventuallyWithT(f, fn, patience, tick)
}

// requireResolved waits for an entry.
func (f *fixture) requireResolved(addr netip.Addr, identity uint32) {
	f.Helper()
	f.eventually(func(t *assert) {
		row := f.endpoint(addr)
		if testassert.NotNil(t, row) {
			testassert.Equal(t, identity, row.Identity())
			testassert.NotNil(t, f.identity(identity))
			testassert.Equal(t, state.SourceOnDemand, row.Origin().Source)
		}
	})
}

func (f *fixture) requireGone(addr netip.Addr) {
	f.Helper()
	f.eventually(func(t *assert) { testassert.Nil(t, f.endpoint(addr)) })
}

// count is how many misses of a side have had an outcome.
func (f *fixture) count(side bpf.Side, outcome Outcome) int {
	return counterValue(f.engine.metrics.misses.WithLabelValues(side.String(), string(outcome)))
}

func (f *fixture) again(outcome Outcome) int {
	return counterValue(f.engine.metrics.revalidations.WithLabelValues(string(outcome)))
}

// elapse lets time pass, and whatever is due by then expire, once.
func (f *fixture) elapse(d time.Duration) {
	f.clock.Step(d + expiryPause)
	wake(f.engine.expiring) // a timer that was about to be set doesn't know
}

func (f *fixture) requireOwner(addr, cluster string) {
	f.Helper()
	f.eventually(func(t *assert) {
		f.engine.mu.Lock()
		defer f.engine.mu.Unlock()
		requireOwner(t, f.engine.cidrs, addr, cluster)
	})
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func kindOf(row *Row) Kind {
	if row == nil {
		return ""
	}
	return row.Kind
}
