// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

func startWriter(t testing.TB, c *Client) *Writer {
	t.Helper()
	w, stop := runWriter(t, c)
	t.Cleanup(stop)
	return w
}

func runWriter(t testing.TB, c *Client) (w *Writer, stop func()) {
	w = NewWriter(hivetest.Logger(t, hivetest.LogLevel(slog.LevelError+1)), c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	return w, sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// content lists a prefix of an etcd.
func content(t assert.TestingT, c *Client, prefix string) map[string]string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := c.etcd.Get(ctx, prefix, clientv3.WithPrefix())
	if !assert.NoError(t, err) {
		return nil
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return out
}

func eventuallyContent(t testing.TB, c *Client, prefix string, want map[string]string) {
	t.Helper()
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		require.Equal(collect, want, content(collect, c, prefix))
	}, patience, tick)
}

func ops(m map[string]string) (out []Op) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Op{Key: k, Value: []byte(m[k])})
	}
	return out
}

func numbered(n int, value string) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprintf("%06d", i)] = value
	}
	return out
}

func leased(prefix string, refill func([]string)) ScopeConfig {
	return ScopeConfig{Prefix: prefix, Lease: true, Canary: "synced/" + strings.TrimSuffix(prefix, "/"),
		CanaryValue: func() []byte { return []byte("done") }, Refill: refill}
}

func clientAt(t testing.TB, ttl time.Duration, urls ...string) *Client {
	opts := DefaultOptions
	opts.QPS = 10_000
	return newTestClient(t, ClientConfig{Endpoints: urls, LeaseTTL: ttl, Options: opts})
}

func TestWriterGroupsCommits(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", nil))
	want := numbered(5000, "value")
	s.Apply(ops(want))
	s.Complete()
	require.NoError(t, s.Barrier(t.Context()))
	require.Equal(t, want, content(t, c, "p/"))
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
	// A commit counts when it is answered, which is after its keys are seen.
	require.Eventually(t, func() bool { return w.Stats().Operations == 5001 }, patience, tick)
	stats := w.Stats()
	require.LessOrEqual(t, stats.Commits, uint64(10), "in batches")

	// Nothing changes: nothing is written.
	s.Apply(ops(want))
	s.Complete()
	require.NoError(t, s.Barrier(t.Context()))
	require.Equal(t, stats.Commits, w.Stats().Commits)

	leases, err := c.etcd.Leases(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(leases.Leases), 6, "a thousand keys on each")
	// Each commit under way may have asked for one of its own.
	require.LessOrEqual(t, len(leases.Leases), 6+DefaultOptions.MaxInflight)
}

// TestWriterSmallServer has etcd's default limit of operations, which the
// Writer must find out.
func TestWriterSmallServer(t *testing.T) {
	server := startServer(t, ServerConfig{maxTxnOps: 16})
	c := clientAt(t, time.Minute, server.URL())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", nil))
	want := numbered(500, "v")
	s.Apply(ops(want))
	require.NoError(t, s.Barrier(t.Context()))
	require.Equal(t, want, content(t, c, "p/"))
}

// TestWriterIsolatesBadKeys has one value beyond etcd's limit among good ones.
func TestWriterIsolatesBadKeys(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", nil))
	want := numbered(300, "v")
	all := ops(want)
	all = slices.Insert(all, 150, Op{Key: "large", Value: make([]byte, 2<<20)}, Op{Key: "larger", Value: make([]byte, 5<<20)})
	s.Apply(all)
	eventuallyContent(t, c, "p/", want)
	require.Eventually(t, func() bool { return w.Stats().Refused == 2 }, patience, tick)
	require.Contains(t, w.Stats().LastError, "large")

	// A value that fits takes its place.
	s.Apply([]Op{{Key: "large", Value: []byte("small")}, {Key: "larger", Delete: true}})
	want["large"] = "small"
	eventuallyContent(t, c, "p/", want)
	require.Eventually(t, func() bool { return w.Stats().Pending == 0 }, patience, tick)
}

// TestWriterRestart adopts keys and leases: nothing is written that is there,
// what is stale goes, and every key outlives its first writer's leases.
func TestWriterRestart(t *testing.T) {
	server := startServer(t, ServerConfig{})
	const ttl = time.Second // etcd's shortest is about that
	first := clientAt(t, ttl, server.URL())
	w, stop := runWriter(t, first)
	s := w.Scope(leased("p/", nil))
	s.Apply(ops(numbered(100, "v")))
	s.Complete()
	require.NoError(t, s.Barrier(t.Context()))
	eventuallyContent(t, first, "synced/", map[string]string{"p": "done"})
	stop()

	c := clientAt(t, ttl, server.URL())
	before, err := c.etcd.Get(t.Context(), "p/")
	require.NoError(t, err)
	watched := c.etcd.Watch(t.Context(), "p/", clientv3.WithPrefix(), clientv3.WithRev(before.Header.Revision+1))
	w = startWriter(t, c)
	s = w.Scope(leased("p/", nil))
	require.NoError(t, s.Load(t.Context()))
	want := numbered(99, "v")
	want["000000"], want["new"] = "changed", "v"
	s.Apply(ops(want))
	s.Complete()
	require.NoError(t, s.Barrier(t.Context()))
	require.Equal(t, want, content(t, c, "p/"))
	require.EqualValues(t, 3, w.Stats().Operations, "one changed, one new, one gone; the canary is there")

	// Several lifetimes later each key is still there, and none was ever away.
	deadline := time.After(4 * ttl)
	for done := false; !done; {
		select {
		case resp := <-watched:
			for _, ev := range resp.Events {
				if ev.Type == clientv3.EventTypeDelete {
					require.Equal(t, "p/000099", string(ev.Kv.Key))
				}
			}
		case <-deadline:
			done = true
		}
	}
	require.Equal(t, want, content(t, c, "p/"))
	require.EqualValues(t, 3, w.Stats().Operations)
}

// TestLoadScopes loads small Scopes, a large one and one without a canary together:
// then nothing is left to be written.
func TestLoadScopes(t *testing.T) {
	server := startServer(t, ServerConfig{})
	configs := []ScopeConfig{leased("empty/", nil), leased("few/", nil), leased("many/", nil), {Prefix: "plain/"}}
	wants := []map[string]string{{}, numbered(3, "v"), numbered(firstPage+1, "v"), numbered(2, "v")}
	fill := func(scopes []*Scope) {
		for i, s := range scopes {
			s.Apply(ops(wants[i]))
			s.Complete()
			require.NoError(t, s.Barrier(t.Context()))
		}
	}
	makeScopes := func(w *Writer) (scopes []*Scope) {
		for _, cfg := range configs {
			scopes = append(scopes, w.Scope(cfg))
		}
		return scopes
	}
	c := clientAt(t, time.Minute, server.URL())
	w, stop := runWriter(t, c)
	fill(makeScopes(w))
	eventuallyContent(t, c, "synced/", map[string]string{"empty": "done", "few": "done", "many": "done"})
	stop()

	w = startWriter(t, clientAt(t, time.Minute, server.URL()))
	scopes := makeScopes(w)
	require.NoError(t, w.LoadScopes(t.Context(), scopes...))
	for i, s := range scopes {
		require.Equal(t, len(wants[i]), s.Len())
	}
	fill(scopes)
	require.Zero(t, w.Stats().Operations)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, w.LoadScopes(ctx, scopes...))
}

// TestWriterAdoptsLeases keeps what an earlier process wrote alive before any
// Scope is loaded, and leaves the leases of others alone.
func TestWriterAdoptsLeases(t *testing.T) {
	server := startServer(t, ServerConfig{})
	first := clientAt(t, time.Minute, server.URL())
	w, stop := runWriter(t, first)
	var scopes []*Scope
	for _, prefix := range []string{"p/mine/", "p/other/"} {
		s := w.Scope(ScopeConfig{Prefix: prefix, Lease: true})
		s.Apply(ops(numbered(keysPerLease, "v"))) // so that they share no lease
		require.NoError(t, s.Barrier(t.Context()))
		scopes = append(scopes, s)
	}
	stop()

	c := clientAt(t, time.Minute, server.URL())
	w = startWriter(t, c)
	require.NoError(t, w.AdoptLeases(t.Context(), "p/", func(key string) bool { return strings.HasPrefix(key, "p/mine/") }))
	w.mu.Lock()
	require.Len(t, w.leases.alive(), 1)
	require.Zero(t, w.leases.take(), "it has keys of which nothing is known")
	w.mu.Unlock()

	s := w.Scope(scopes[0].cfg)
	require.NoError(t, s.Load(t.Context()))
	w.mu.Lock()
	require.Equal(t, keysPerLease, w.leases.leases[0].keys)
	w.mu.Unlock()
	s.Apply(ops(numbered(1, "changed")))
	require.NoError(t, s.Barrier(t.Context()))
	s.Apply([]Op{{Key: "000001", Delete: true}})
	require.NoError(t, s.Barrier(t.Context()))
	w.mu.Lock()
	require.EqualValues(t, 1, w.leases.take(), "it has room now")
	w.mu.Unlock()
}

// TestWriterLeaseExpires has just the keys of a lost lease written again.
func TestWriterLeaseExpires(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	want := numbered(1500, "v")
	var (
		s        *Scope
		refilled atomic.Int64
	)
	s = w.Scope(leased("p/", func(keys []string) {
		refilled.Add(int64(len(keys)))
		for _, k := range keys {
			s.Apply([]Op{{Key: k, Value: []byte(want[k])}})
		}
		s.Complete()
	}))
	s.Apply(ops(want))
	s.Complete()
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
	resp, err := c.etcd.Get(t.Context(), "p/000000")
	require.NoError(t, err)
	_, err = c.etcd.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
	require.NoError(t, err)
	// The keep-alive would find out by itself, a third of the TTL later; a
	// write on the lost lease does so at once.
	s.Apply([]Op{{Key: "000000", Value: []byte("v2")}})
	want["000000"] = "v2"
	eventuallyContent(t, c, "p/", want)
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
	require.LessOrEqual(t, refilled.Load(), int64(1000), "only what was lost")
	require.NotZero(t, refilled.Load())
}

// TestWriterEtcdLost swaps the etcd for an empty one, which has another
// cluster ID or, worse, the same.
func TestWriterEtcdLost(t *testing.T) {
	for name, token := range map[string]string{"another cluster ID": "", "the same cluster ID": "same"} {
		for _, lease := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, leases %v", name, lease), func(t *testing.T) {
				first := startServer(t, ServerConfig{Token: token})
				second := startServer(t, ServerConfig{Token: token})
				p := newProxy(t, first)
				c := clientAt(t, time.Minute, p.url())
				w := startWriter(t, c)
				want := numbered(300, "v")
				var s *Scope
				cfg := leased("p/", func([]string) {
					s.Apply(ops(want))
					s.Complete()
				})
				cfg.Lease = lease
				s = w.Scope(cfg)
				s.Apply(ops(want))
				s.Complete()
				eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})

				p.set(second)
				p.cut()
				direct := clientAt(t, time.Minute, second.URL())
				// The canary came last, and was never there before: neither one that waited
				// nor one that was under way when the etcd was swapped.
				canary := <-direct.etcd.Watch(t.Context(), "synced/p", clientv3.WithRev(1))
				require.NoError(t, canary.Err())
				last, err := direct.etcd.Get(t.Context(), "p/", clientv3.WithLastRev()...)
				require.NoError(t, err)
				require.LessOrEqual(t, last.Kvs[0].ModRevision, canary.Events[0].Kv.ModRevision)
				require.Equal(t, want, content(t, direct, "p/"))
			})
		}
	}
}

// TestWriterEtcdRestored has the etcd come back with older data: what was deleted
// since then goes again, and nobody keeps its lease alive.
func TestWriterEtcdRestored(t *testing.T) {
	for name, token := range map[string]string{"another cluster ID": "", "the same cluster ID": "same"} {
		t.Run(name, func(t *testing.T) {
			first := startServer(t, ServerConfig{Token: token})
			second := startServer(t, ServerConfig{Token: token})
			older := clientAt(t, time.Minute, second.URL())
			lease, err := older.etcd.Grant(t.Context(), 60)
			require.NoError(t, err)
			for _, key := range []string{"p/000001", "p/ghost", "q/other"} {
				_, err := older.etcd.Put(t.Context(), key, "old", clientv3.WithLease(lease.ID))
				require.NoError(t, err)
			}
			p := newProxy(t, first)
			c := clientAt(t, time.Minute, p.url())
			w := startWriter(t, c)
			want := numbered(300, "v")
			var s *Scope
			s = w.Scope(leased("p/", func([]string) {
				s.Apply(ops(want))
				s.Complete()
			}))
			require.NoError(t, s.Load(t.Context()))
			for _, op := range ops(want) { // so that its revision is the higher one
				s.Apply([]Op{op})
				require.NoError(t, s.Barrier(t.Context()))
			}
			s.Complete()
			eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
			p.set(second)
			p.cut()
			eventuallyContent(t, older, "p/", want)
			eventuallyContent(t, older, "q/", map[string]string{"other": "old"})
			eventuallyContent(t, older, "synced/", map[string]string{"p": "done"})
		})
	}
}

// TestWriterEtcdLostAfterFailures has the etcd come back empty when connections
// have failed for a while. gRPC then fails requests until the next connection is
// ready, so that the first look at that etcd comes too early.
func TestWriterEtcdLostAfterFailures(t *testing.T) {
	p := newProxy(t, startServer(t, ServerConfig{}))
	second := startServer(t, ServerConfig{})
	c := clientAt(t, time.Minute, p.url())
	w := startWriter(t, c)
	want := numbered(10, "v")
	var s *Scope
	s = w.Scope(leased("p/", func([]string) {
		s.Apply(ops(want))
		s.Complete()
	}))
	s.Apply(ops(want))
	s.Complete()
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})

	p.set(nil)
	p.cut()
	for state := c.etcd.ActiveConnection().GetState(); state != connectivity.TransientFailure; state = c.etcd.ActiveConnection().GetState() {
		require.True(t, c.etcd.ActiveConnection().WaitForStateChange(t.Context(), state))
	}
	p.set(second)
	direct := clientAt(t, time.Minute, second.URL())
	eventuallyContent(t, direct, "p/", want)
	eventuallyContent(t, direct, "synced/", map[string]string{"p": "done"})
}

// TestWriterEtcdAway coalesces while there is no etcd.
func TestWriterEtcdAway(t *testing.T) {
	server := startServer(t, ServerConfig{})
	p := newProxy(t, server)
	c := clientAt(t, time.Minute, p.url())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", nil))
	s.Apply(ops(numbered(10, "v")))
	require.NoError(t, s.Barrier(t.Context()))
	p.set(nil)
	p.cut()
	for i := range 1000 {
		s.Apply(ops(numbered(10, fmt.Sprint(i))))
	}
	require.LessOrEqual(t, w.Stats().Pending, 20, "bounded by keys, not by operations")
	p.set(server)
	require.NoError(t, s.Barrier(t.Context()))
	require.Equal(t, numbered(10, "999"), content(t, c, "p/"))
}

func TestScopeDrop(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	s, other := w.Scope(leased("p/", nil)), w.Scope(leased("q/", nil))
	s.Apply(ops(numbered(1500, "v")))
	s.Complete()
	other.Apply(ops(numbered(3, "v")))
	other.Complete()
	require.NoError(t, s.Barrier(t.Context()))
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done", "q": "done"})
	require.NoError(t, s.Drop(t.Context()))
	require.Empty(t, content(t, c, "p/"))
	require.Equal(t, map[string]string{"q": "done"}, content(t, c, "synced/"))
	require.Len(t, content(t, c, "q/"), 3)
	require.Zero(t, s.Len())
	s.Apply(ops(numbered(2, "v")))
	s.Complete()
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done", "q": "done"})
	require.Equal(t, numbered(2, "v"), content(t, c, "p/"))
}

// TestScopeGivenUp drops or closes a Scope before what makes it complete is
// written: nothing is complete then, no canary says so, and whoever waits for
// less to be pending goes on.
func TestScopeGivenUp(t *testing.T) {
	for name, giveUp := range map[string]func(context.Context, *Scope) error{
		"drop":  func(ctx context.Context, s *Scope) error { return s.Drop(ctx) },
		"close": func(_ context.Context, s *Scope) error { s.Close(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestClient(t, ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}})
			w := NewWriter(slog.New(slog.DiscardHandler), c)
			cfg := leased("p/", nil)
			cfg.OnComplete = func() { t.Error("completed") }
			s := w.Scope(cfg)
			s.Apply(ops(numbered(300, strings.Repeat("x", 100<<10))))
			s.Complete()
			var wg sync.WaitGroup
			wg.Go(func() { assert.NoError(t, w.Admit(t.Context())) })

			ctx, cancel := context.WithCancel(t.Context())
			cancel() // this etcd won't delete anything
			err := giveUp(ctx, s)
			require.True(t, err == nil || ctx.Err() != nil)
			w.runCallbacks()
			wg.Wait()
			require.Zero(t, w.Stats().Pending, "no canary")
		})
	}
}

// TestScopeRestartLeavesNothing has operations of the former source pending and
// under way: of what the next source doesn't have, nothing stays.
func TestScopeRestartLeavesNothing(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}})
	w := NewWriter(slog.New(slog.DiscardHandler), c)
	s := w.Scope(ScopeConfig{Prefix: "p/"})
	now := time.Now()
	value := []byte("v")
	s.Apply([]Op{{Key: "gone", Value: value}, {Key: "stays", Value: value}})
	batch, _ := w.nextCommit(now)
	require.Len(t, batch, 2)
	s.Apply([]Op{{Key: "pending", Value: value}})
	s.Restart()
	s.Apply([]Op{{Key: "stays", Value: value}})
	w.succeeded(t.Context(), batch, &pb.ResponseHeader{ClusterId: 1, Revision: 2}, 0)
	w.running--
	s.Complete()
	batch, _ = w.nextCommit(now.Add(time.Second))
	require.Len(t, batch, 1)
	require.Equal(t, "gone", batch[0].key)
	require.True(t, batch[0].delete)
}

// TestNextCommitNeverForgets has the rate limit run out at every fraction of a
// token: while operations are pending and nothing is under way, there is either
// a commit or a delay to wait for.
func TestNextCommitNeverForgets(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}})
	w := NewWriter(slog.New(slog.DiscardHandler), c)
	s := w.Scope(ScopeConfig{Prefix: "p/"})
	now := time.Now()
	for i := range 20_000 {
		s.Apply([]Op{{Key: "k", Value: fmt.Append(nil, i)}})
		batch, delay := w.nextCommit(now)
		if batch == nil {
			require.Positive(t, delay, "nothing to do, nothing to wait for, and an operation pending")
		} else {
			w.plan.succeeded(batch)
			w.running--
		}
		now = now.Add(time.Duration(i%7000) * time.Microsecond)
	}
}

// TestAdmit waits while much is pending, and goes on when it was written.
func TestAdmit(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := NewWriter(slog.New(slog.DiscardHandler), c)
	s := w.Scope(ScopeConfig{Prefix: "p/"})
	require.NoError(t, w.Admit(t.Context()))
	s.Apply(ops(numbered(300, strings.Repeat("x", 100<<10))))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(assert.AnError)
	require.ErrorIs(t, w.Admit(ctx), assert.AnError)
	run, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(run) })
	require.NoError(t, w.Admit(t.Context()))
	stop()
	wg.Wait()
}

// BenchmarkWriter writes keys of the size that endpoints have.
func BenchmarkWriter(b *testing.B) {
	c := clientAt(b, time.Minute, startServer(b, ServerConfig{}).URL())
	w := startWriter(b, c)
	s := w.Scope(leased("p/", nil))
	batch := make([]Op, 1000)
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		for i := range batch {
			batch[i] = Op{Key: fmt.Sprintf("10.%d.%d", n, i), Value: fmt.Appendf(make([]byte, 0, 200), "%0190d", n)}
		}
		require.NoError(b, w.Admit(b.Context()))
		s.Apply(batch)
	}
	require.NoError(b, s.Barrier(b.Context()))
	b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "keys/s")
}

// TestWriterDeletesWithoutSpace has an etcd that is full: it still takes deletes,
// which must not wait for puts that were asked for before.
func TestWriterDeletesWithoutSpace(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{QuotaBytes: 1 << 20}).URL())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", nil))
	s.Apply(ops(map[string]string{"old": "v"}))
	require.NoError(t, s.Barrier(t.Context()))

	// The server notices at its next commit to disk that it is full.
	large := make([]byte, 64<<10)
	var all []Op
	require.Eventually(t, func() bool {
		key := fmt.Sprint(len(all))
		s.Apply([]Op{{Key: key, Value: large}})
		all = append(all, Op{Key: key, Delete: true})
		alarms, err := c.etcd.AlarmList(t.Context())
		return err == nil && len(alarms.Alarms) > 0
	}, patience, tick)
	s.Apply([]Op{{Key: "old", Delete: true}})
	require.EventuallyWithT(t, func(collect *assert.CollectT) {
		require.NotContains(collect, content(collect, c, "p/"), "old")
	}, patience, tick)
	require.NotZero(t, w.Stats().Pending)

	// What etcd took although it said no goes as well.
	s.Apply(all)
	eventuallyContent(t, c, "p/", map[string]string{})
}

// TestAwaitKey has a key of one Scope written before one of another is deleted,
// while etcd doesn't take the first one.
func TestAwaitKey(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	here, there := w.Scope(leased("here/", nil)), w.Scope(leased("there/", nil))
	done := make(chan string, 10)
	here.Apply([]Op{{Key: "k", Value: []byte("v")}})
	require.NoError(t, here.Barrier(t.Context()))
	require.False(t, here.AwaitKey("k", func() { done <- "never" }), "all is committed")
	require.False(t, here.Await(func() { done <- "never" }))

	there.Apply([]Op{{Key: "k", Value: make([]byte, 3<<20)}})
	require.True(t, there.AwaitKey("k", func() { done <- "k" }))
	require.Eventually(t, func() bool { return w.Stats().Refused == 1 }, patience, tick)
	require.Empty(t, done, "etcd refuses it")

	there.Apply([]Op{{Key: "k", Value: []byte("v")}})
	require.Equal(t, "k", <-done)
	require.Equal(t, map[string]string{"k": "v"}, content(t, c, "there/"))
}
