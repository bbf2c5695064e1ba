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

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// TestPassAgainstModel drives a Scope as a passthrough Reader's Observer does: by
// lists that begin, end halfway, begin again and complete, and by a watch in
// between, while commits succeed, fail or lose their answer in any order. What was
// told stays until it is told to be gone, by the watch or by a pass that
// completed; and in the end etcd holds just that.
func TestPassAgainstModel(t *testing.T) {
	client := newTestClient(t, ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}})
	rapid.Check(t, func(t *rapid.T) {
		var (
			w       = NewWriter(slog.New(slog.DiscardHandler), client)
			s       = w.Scope(ScopeConfig{Prefix: "p/"})
			store   = map[string]string{}
			kept    = map[string]string{} // what is to be there
			fresh   = map[string]bool{}   // told of in the present pass
			running [][]*operation
			now     = time.Now()
			header  = &pb.ResponseHeader{ClusterId: 1, Revision: 1}
			key     = rapid.StringMatching(`[a-e]`)
			value   = rapid.StringMatching(`[0-2]`)
		)
		w.limiter.SetLimit(1e9)
		w.limiter.SetBurst(1e9)
		w.maxOps = rapid.IntRange(1, 3).Draw(t, "maxOps")
		write := func(batch []*operation) {
			for _, op := range batch {
				if op.delete {
					delete(store, op.key)
				} else {
					store[op.key] = string(op.value)
				}
			}
		}
		take := func() bool {
			now = now.Add(time.Minute) // beyond any pause
			batch, _ := w.nextCommit(now)
			for _, op := range batch {
				if _, wanted := kept[op.key]; op.delete && wanted {
					// Overtaken by a put that is still pending.
					require.False(t, s.ops[op.key].delete, "%q is deleted too early", op.key)
				}
			}
			if batch != nil {
				running = append(running, batch)
			}
			return batch != nil
		}
		pick := func() []*operation {
			i := rapid.IntRange(0, len(running)-1).Draw(t, "commit")
			batch := running[i]
			running = slices.Delete(running, i, i+1)
			w.running--
			return batch
		}
		succeed := func(batch []*operation) {
			write(batch)
			w.succeeded(t.Context(), batch, header, 0)
		}
		tell := func(k, v string) {
			kept[k], fresh[k] = v, true
			s.Apply([]Op{{Key: k, Value: []byte(v)}})
		}
		complete := func() {
			maps.DeleteFunc(kept, func(k, _ string) bool { return !fresh[k] })
			s.Complete()
		}
		t.Repeat(map[string]func(*rapid.T){
			"list": func(t *rapid.T) {
				clear(fresh)
				s.BeginPass()
				for k, v := range rapid.MapOf(key, value).Draw(t, "page") {
					tell(k, v)
				}
				if rapid.Bool().Draw(t, "complete") {
					complete()
				}
			},
			"rest of a list": func(t *rapid.T) {
				for k, v := range rapid.MapOf(key, value).Draw(t, "page") {
					tell(k, v)
				}
				complete()
			},
			"put": func(t *rapid.T) { tell(key.Draw(t, "key"), value.Draw(t, "value")) },
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				delete(kept, k)
				s.Apply([]Op{{Key: k, Delete: true}})
			},
			"clear": func(*rapid.T) { clear(kept); s.Clear() },
			"restart": func(t *rapid.T) {
				// What is queued is forgotten, or goes by the Complete.
				clear(fresh)
				s.Restart()
				for k, v := range rapid.MapOf(key, value).Draw(t, "page") {
					tell(k, v)
				}
				complete()
			},
			"take": func(*rapid.T) { take() },
			"succeed": func(*rapid.T) {
				if len(running) > 0 {
					succeed(pick())
				}
			},
			"fail": func(t *rapid.T) {
				if len(running) > 0 {
					batch := pick()
					if rapid.Bool().Draw(t, "answer lost") {
						write(batch)
					}
					w.failed(batch, nil)
				}
			},
			"refuse": func(*rapid.T) {
				if len(running) > 0 {
					for _, op := range pick() {
						w.refused(op, assert.AnError)
					}
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(kept), s.Held())
				for k := range kept {
					require.True(t, s.Holds(k))
				}
			},
		})
		for w.Stats().Pending > 0 {
			for take() {
			}
			for len(running) > 0 {
				succeed(pick())
			}
		}
		require.Equal(t, kept, store)
		require.Equal(t, len(store), s.records.len())
		require.Empty(t, s.groups)
	})
}

// replicator replicates a prefix as KVStoreMesh does: a passthrough Reader on one
// etcd, a Scope on another.
type replicator struct {
	scope  *Scope
	reader *Reader
	wanted atomic.Uint64
	served atomic.Uint64
	lost   atomic.Uint64
}

func newReplicator(t testing.TB, w *Writer, canary string) *replicator {
	r := &replicator{}
	cfg := testReaderConfig(t)
	cfg.Passthrough, cfg.Canary = true, canary
	r.reader = NewReader(cfg, r)
	r.scope = w.Scope(leased("copy/", func(keys []string) {
		r.lost.Add(1)
		r.wanted.Store(r.reader.Resend(keys))
	}))
	return r
}

func (r *replicator) OnBatch(_ context.Context, b Batch) {
	if b.First {
		r.scope.BeginPass()
	}
	var ops []Op
	for _, ev := range b.Events {
		ops = append(ops, Op{Key: ev.Key, Value: ev.Value, Delete: ev.Deleted})
	}
	r.scope.Apply(ops)
	if b.Synced {
		if lost := r.lost.Load(); b.Resent >= r.wanted.Load() {
			r.served.Store(lost)
		}
		r.scope.CompleteAfter(r.served.Load())
	}
}

// TestPassthroughReplicates has the Reader of a Scope go through all that befalls
// a source: a watch, another etcd that is still filling up, a list that ends
// halfway, a resumed watch, a drain.
func TestPassthroughReplicates(t *testing.T) {
	first, second := startServer(t, ServerConfig{}), startServer(t, ServerConfig{})
	p := newProxy(t, first)
	a := newTestClient(t, ClientConfig{Endpoints: []string{first.URL()}})
	b := newTestClient(t, ClientConfig{Endpoints: []string{second.URL()}})
	local := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, local)
	put(t, local, "copy/earlier", "x") // of an earlier process
	r := newReplicator(t, w, "canary")
	require.NoError(t, r.scope.Load(t.Context()))
	put(t, a, "p/a", "1", "p/b", "1")
	source := newTestClient(t, ClientConfig{Endpoints: []string{p.url()}})
	stop := startReader(t, r.reader, source)
	eventuallyContent(t, local, "copy/", map[string]string{"a": "1", "b": "1", "earlier": "x"})
	put(t, a, "canary", "x")
	eventuallyContent(t, local, "copy/", map[string]string{"a": "1", "b": "1"})
	eventuallyContent(t, local, "synced/", map[string]string{"copy": "done"})
	require.Equal(t, 2, r.scope.Held())

	put(t, a, "p/a", "2", "p/c", "1")
	remove(t, a, "p/b")
	eventuallyContent(t, local, "copy/", map[string]string{"a": "2", "c": "1"})
	lists := r.reader.Lists()
	p.cut()
	put(t, a, "p/d", "1")
	eventuallyContent(t, local, "copy/", map[string]string{"a": "2", "c": "1", "d": "1"})
	require.Equal(t, lists, r.reader.Lists(), "it was resumed")

	// Another etcd has less, and isn't complete; then it is.
	put(t, b, "p/a", "3", "p/e", "1")
	p.set(second)
	p.cut()
	eventuallyContent(t, local, "copy/", map[string]string{"a": "3", "c": "1", "d": "1", "e": "1"})
	remove(t, b, "p/e")
	eventuallyContent(t, local, "copy/", map[string]string{"a": "3", "c": "1", "d": "1"})
	require.Equal(t, 3, r.scope.Held())
	put(t, b, "canary", "x")
	eventuallyContent(t, local, "copy/", map[string]string{"a": "3"})

	// What the local etcd has is neither written nor deleted again.
	require.NoError(t, r.scope.Barrier(t.Context())) // a commit counts when it is answered, after it is seen
	before := w.Stats().Operations
	p.set(first)
	p.cut()
	eventuallyContent(t, local, "copy/", map[string]string{"a": "2", "c": "1", "d": "1"})
	require.NoError(t, r.scope.Barrier(t.Context()))
	require.EqualValues(t, 3, w.Stats().Operations-before)

	stop()
	r.reader.Drain(t.Context())
	r.scope.Clear()
	require.NoError(t, r.scope.Barrier(t.Context()))
	require.Empty(t, content(t, local, "copy/"))
	require.Zero(t, r.scope.Held())
	startReader(t, r.reader, source)
	eventuallyContent(t, local, "copy/", map[string]string{"a": "2", "c": "1", "d": "1"})
}

// TestPassthroughListEndsHalfway ends a list after its first page, and has the
// next one begin anew: nothing goes before that is complete.
func TestPassthroughListEndsHalfway(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	w := startWriter(t, clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL()))
	fill, stopFill := runWriter(t, c)
	s := fill.Scope(ScopeConfig{Prefix: "p/"})
	s.Apply(ops(numbered(firstPage+500, "v")))
	require.NoError(t, s.Barrier(t.Context()))
	stopFill()

	r := newReplicator(t, w, "")
	r.scope.Apply([]Op{{Key: "known", Value: []byte("x")}})
	require.NoError(t, r.scope.Barrier(t.Context()))
	ctx, interrupt := context.WithCancel(t.Context())
	firsts := 0
	r.reader.observer = ObserverFunc(func(ctx context.Context, b Batch) {
		if r.OnBatch(ctx, b); b.First {
			firsts++
			interrupt()
		}
	})
	require.NoError(t, r.reader.Run(ctx, c))
	require.Equal(t, firstPage+1, r.scope.Held())
	require.True(t, r.scope.Holds("known"))
	remove(t, c, "p/000000")
	var run sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	run.Go(func() { assert.NoError(t, r.reader.Run(ctx, c)) })
	want := numbered(firstPage+500, "v")
	delete(want, "000000")
	eventuallyContent(t, w.client, "copy/", want)
	stop()
	run.Wait()
	require.Equal(t, 2, firsts)
}

// TestPassthroughEmpty lists a prefix that has nothing: what was there goes.
func TestPassthroughEmpty(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	w := startWriter(t, clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL()))
	put(t, w.client, "copy/old", "x")
	r := newReplicator(t, w, "")
	require.NoError(t, r.scope.Load(t.Context()))
	startReader(t, r.reader, c)
	eventuallyContent(t, w.client, "copy/", map[string]string{})
	eventuallyContent(t, w.client, "synced/", map[string]string{"copy": "done"})
}

// TestPassthroughRefills has the local etcd lose everything, once while a list is
// under way, which doesn't bring it back, and once in peace.
func TestPassthroughRefills(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1", "p/b", "1")
	w := startWriter(t, clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL()))
	r := newReplicator(t, w, "")
	lose := func() {
		_, err := w.client.etcd.Delete(t.Context(), "copy/", clientv3.WithPrefix())
		assert.NoError(t, err)
		loseEverything(t, w)
	}
	var once sync.Once
	r.reader.observer = ObserverFunc(func(ctx context.Context, b Batch) {
		if r.OnBatch(ctx, b); b.Listing {
			once.Do(func() {
				assert.NoError(t, r.scope.Barrier(ctx))
				lose()
			})
		}
	})
	startReader(t, r.reader, c)
	want := map[string]string{"a": "1", "b": "1"}
	eventuallyContent(t, w.client, "copy/", want)
	eventuallyContent(t, w.client, "synced/", map[string]string{"copy": "done"})
	lose()
	eventuallyContent(t, w.client, "copy/", want)
}

// BenchmarkPlan is the cost of one new key from Apply until it is committed, etcd
// left out.
func BenchmarkPlan(b *testing.B) {
	const n = 10_000
	batch := make([]Op, n)
	for i := range batch {
		batch[i] = Op{Key: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Value: []byte(strings.Repeat("v", 200))}
	}
	w := NewWriter(slog.New(slog.DiscardHandler), newTestClient(b, ClientConfig{Endpoints: []string{"http://127.0.0.1:1"}}))
	w.limiter.SetLimit(1e9)
	w.limiter.SetBurst(1e9)
	header := &pb.ResponseHeader{ClusterId: 1, Revision: 1}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		s := w.Scope(ScopeConfig{Prefix: "p/"})
		s.Apply(batch)
		s.Complete()
		now := time.Now()
		for w.plan.length() > 0 {
			now = now.Add(time.Second)
			if commit, _ := w.nextCommit(now); commit != nil {
				w.succeeded(b.Context(), commit, header, 0)
				w.running--
			}
		}
		s.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
}
