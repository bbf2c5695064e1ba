// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

// TestPlanAgainstModel drives the plan with random operations, commits that
// succeed, fail or are refused in any order, and compares what a store that
// obeys the commits holds in the end with what was asked for.
func TestPlanAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			p       = newPlan()
			scope   = &Scope{records: newKeyMap[record]()}
			want    = map[string]string{} // what was asked for
			store   = map[string]string{} // what was committed
			running [][]*operation
			waits   int
			key     = rapid.StringMatching(`[a-e]`)
			value   = rapid.StringMatching(`[0-3]{1,3}`)
			maxOps  = rapid.IntRange(1, 4).Draw(t, "maxOps")
			clock   = time.Unix(0, 0)
			// since has, of each key that is waited for, what was asked for since.
			since = map[int]map[string]bool{}
			of    = map[int]string{}
		)
		const none = "(no key)"
		state := func(of map[string]string, k string) string {
			if v, ok := of[k]; ok {
				return v
			}
			return none
		}
		asked := func(k string) {
			for wait, key := range of {
				if key == k {
					since[wait][state(want, k)] = true
				}
			}
		}
		write := func(batch []*operation) {
			seen := map[string]bool{}
			for _, op := range batch {
				require.False(t, seen[op.key], "a key twice in one commit")
				seen[op.key] = true
				if op.delete {
					delete(store, op.key)
				} else {
					store[op.key] = string(op.value)
				}
			}
		}
		commit := func(batch []*operation) {
			write(batch)
			for _, op := range batch {
				if op.delete {
					scope.records.delete(op.key)
				} else {
					r, _ := scope.records.put(op.key)
					*r = record{hash: op.hash}
				}
			}
			p.succeeded(batch)
		}
		pick := func() []*operation {
			i := rapid.IntRange(0, len(running)-1).Draw(t, "commit")
			batch := running[i]
			running = append(running[:i], running[i+1:]...)
			return batch
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), value.Draw(t, "value")
				want[k] = v
				asked(k)
				committed, known := scope.record(k)
				p.add(target{scope, k}, Op{Key: k, Value: []byte(v), First: rapid.Bool().Draw(t, "first")}, committed, known)
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				delete(want, k)
				asked(k)
				committed, known := scope.record(k)
				p.add(target{scope, k}, Op{Key: k, Delete: true}, committed, known)
			},
			"next": func(t *rapid.T) {
				batch := p.next(maxOps, 1<<20, false)
				require.LessOrEqual(t, len(batch), maxOps)
				for _, other := range running {
					for _, a := range other {
						for _, b := range batch {
							require.NotEqual(t, a.key, b.key, "two operations on one key under way")
						}
					}
				}
				if batch != nil {
					running = append(running, batch)
				}
			},
			"succeed": func(t *rapid.T) {
				if len(running) > 0 {
					commit(pick())
				}
			},
			"fail": func(t *rapid.T) {
				if len(running) > 0 {
					p.failed(pick())
				}
			},
			"lose the answer": func(t *rapid.T) {
				if len(running) > 0 {
					batch := pick()
					write(batch)
					p.failed(batch)
				}
			},
			"refuse": func(t *rapid.T) {
				if len(running) > 0 {
					for _, op := range pick() {
						p.park(op, clock)
					}
				}
			},
			"await": func(t *rapid.T) {
				waits++
				if !p.await(scope, func() { waits-- }) {
					waits--
				}
			},
			"await key": func(t *rapid.T) {
				k, wait := key.Draw(t, "key"), len(of)
				of[wait], since[wait] = k, map[string]bool{state(want, k): true}
				waits++
				done := func() {
					waits--
					require.True(t, since[wait][state(store, k)], "%s isn't as it was to be at the time or later", k)
				}
				if !p.awaitKey(target{scope, k}, done) {
					done()
				}
			},
			"": func(t *rapid.T) {
				require.Equal(t, len(want), scope.held)
				for k, op := range scope.ops {
					require.Equal(t, k, op.key)
					_, wanted := want[k]
					require.Equal(t, wanted, !op.delete)
				}
			},
		})
		for p.length() > 0 {
			p.unpark(clock)
			if batch := p.next(maxOps, 1<<20, false); batch != nil {
				running = append(running, batch)
			}
			for len(running) > 0 {
				commit(running[0])
				running = running[1:]
			}
		}
		require.Equal(t, want, store)
		require.Zero(t, waits, "somebody still waits")
		require.Zero(t, p.bytes)
		require.Zero(t, p.deletes)
		require.Nil(t, p.first)
		require.Nil(t, p.last)
		require.Empty(t, scope.ops)
		require.Empty(t, scope.groups)
	})
}

// TestPlanAwaitKey goes through the ends that an operation can come to.
func TestPlanAwaitKey(t *testing.T) {
	var (
		p    *plan
		s    *Scope
		done int
		k    target
	)
	begin := func() {
		p, s, done = newPlan(), &Scope{records: newKeyMap[record]()}, 0
		k = target{s, "k"}
		require.False(t, p.awaitKey(k, func() { done++ }), "nothing to wait for")
		p.add(k, Op{Key: "k", Value: []byte("v")}, record{}, false)
		require.True(t, p.awaitKey(k, func() { done++ }))
		require.Zero(t, done)
	}

	begin()
	batch := p.next(10, 1<<20, false)
	p.failed(batch) // and etcd may have made it
	require.Zero(t, done, "the answer was lost")
	p.succeeded(p.next(10, 1<<20, false))
	require.Equal(t, 1, done)

	begin()
	p.park(p.next(10, 1<<20, false)[0], time.Unix(1, 0))
	require.Zero(t, done, "refused")
	require.True(t, p.awaitKey(k, func() { done++ }), "what is refused isn't committed")
	p.add(k, Op{Key: "k", Value: []byte("w")}, record{}, false)
	require.Zero(t, done)
	p.succeeded(p.next(10, 1<<20, false))
	require.Equal(t, 2, done, "another value was taken")

	begin()
	batch = p.next(10, 1<<20, false)
	p.add(k, Op{Key: "k", Delete: true}, record{}, false)
	require.True(t, p.awaitKey(k, func() { done += 10 }))
	p.succeeded(batch)
	require.Equal(t, 1, done, "the delete behind it isn't waited for by who came before")
	p.succeeded(p.next(10, 1<<20, false))
	require.Equal(t, 11, done)

	begin()
	p.add(k, Op{Key: "k", Delete: true}, record{}, false)
	require.Equal(t, 1, done, "it has become needless")

	begin()
	p.discard(s, true)
	require.Equal(t, 1, done, "it is given up")
	require.Zero(t, p.length())
}

func TestPlanDropsNoOps(t *testing.T) {
	p, s := newPlan(), &Scope{}
	has := record{hash: xxhash.Sum64String("v")}
	p.add(target{s, "k"}, Op{Key: "k", Value: []byte("v")}, has, true)
	require.Zero(t, p.length(), "the value is there already")
	p.add(target{s, "k"}, Op{Key: "k", Delete: true}, record{}, false)
	require.Zero(t, p.length(), "the key isn't there")
	p.add(target{s, "k"}, Op{Key: "k", Value: []byte("w")}, has, true)
	p.add(target{s, "k"}, Op{Key: "k", Value: []byte("v")}, has, true)
	require.Zero(t, p.length(), "there and back again")
	p.add(target{s, "k"}, Op{Key: "k", Value: []byte("v")}, record{hash: has.hash, flags: recordLost}, true)
	require.Equal(t, 1, p.length(), "etcd has lost it")
}

func TestPlanTakesFirst(t *testing.T) {
	p, s := newPlan(), &Scope{}
	add := func(op Op) { p.add(target{s, op.Key}, op, record{}, false) }
	keys := func() (keys []string) {
		for _, op := range p.next(10, 1<<20, false) {
			keys = append(keys, op.key)
		}
		return keys
	}
	for _, key := range []string{"a", "b", "c"} {
		add(Op{Key: key, Value: []byte("v")})
	}
	add(Op{Key: "d", Value: []byte("v"), First: true})
	add(Op{Key: "c", Value: []byte("w"), First: true})
	add(Op{Key: "b", Value: []byte("w")})
	require.Equal(t, []string{"c", "d", "a", "b"}, keys())
}

func TestPlanKeepsToBytes(t *testing.T) {
	p, s := newPlan(), &Scope{}
	for i := range 10 {
		p.add(target{s, fmt.Sprint(i)}, Op{Value: make([]byte, 100)}, record{}, false)
	}
	require.Len(t, p.next(100, 300, false), 2)
	p.add(target{s, "large"}, Op{Value: make([]byte, 1000)}, record{}, false)
	var sizes []int
	for batch := p.next(100, 500, false); batch != nil; batch = p.next(100, 500, false) {
		sizes = append(sizes, len(batch))
	}
	require.Equal(t, []int{3, 3, 2, 1}, sizes, "the large one goes alone")
}

// TestLeasePoolStaysSmall updates a key on a lease that lacks one key of being
// full, over and over: what the pool remembers doesn't grow with it.
func TestLeasePoolStaysSmall(t *testing.T) {
	p := newLeasePool(nil, nil)
	n, _ := p.add(1)
	for range keysPerLease - 1 {
		require.Equal(t, n, p.take())
	}
	for range 100 {
		p.hold(n)
		p.drop(n)
	}
	require.Len(t, p.open, 1)
	require.Equal(t, n, p.take())
	require.Zero(t, p.take(), "the lease is full")
	p.drop(n)
	require.Equal(t, n, p.take(), "and has room again")
}

// TestPacer has the clock passed in: an idle mesh pays no delay, a busy one
// waits for company, and no longer than it may.
func TestPacer(t *testing.T) {
	now := time.Unix(0, 0)
	p := pacer{longest: 10 * time.Millisecond, batch: pacerBatch, last: now}
	p.observe(now.Add(time.Second), 1)
	require.Zero(t, p.wait(), "one change a second")

	rate := func(perSecond int) time.Duration {
		p := pacer{longest: 10 * time.Millisecond, batch: pacerBatch, last: now}
		for i := range 1000 {
			p.observe(now.Add(time.Duration(i+1)*10*time.Millisecond), perSecond/100)
		}
		return p.wait()
	}
	require.Zero(t, rate(100))
	require.Equal(t, 10*time.Millisecond, rate(500))
	require.InDelta(t, 4*time.Millisecond, rate(5000), float64(time.Millisecond))
	require.Less(t, rate(100_000), time.Millisecond)

	none := pacer{last: now}
	none.observe(now.Add(time.Millisecond), 1000)
	require.Zero(t, none.wait(), "no delay allowed")
}

// TestMirrorAgainstModel feeds random lists and watch events and checks that
// the events that come out rebuild exactly what the source holds, without one
// that changes nothing.
func TestMirrorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, got := newMirror(), map[string]string{}
		source := map[string]string{}
		apply := func(events []Event) {
			for _, ev := range events {
				if ev.Deleted {
					require.Contains(t, got, ev.Key)
					delete(got, ev.Key)
					continue
				}
				old, ok := got[ev.Key]
				require.Equal(t, !ok, ev.New)
				require.False(t, ok && old == string(ev.Value), "an event without a difference")
				got[ev.Key] = string(ev.Value)
			}
		}
		contents := rapid.MapOf(rapid.StringMatching(`[a-f]`), rapid.StringMatching(`[0-3]`))
		t.Repeat(map[string]func(*rapid.T){
			"relist": func(t *rapid.T) {
				source = contents.Draw(t, "contents")
				var kvs []*mvccpb.KeyValue
				for k, v := range source {
					kvs = append(kvs, &mvccpb.KeyValue{Key: []byte("p/" + k), Value: []byte(v)})
				}
				m.beginList()
				half := rapid.IntRange(0, len(kvs)).Draw(t, "page")
				apply(m.page(nil, 2, kvs[:half]))
				apply(m.page(nil, 2, kvs[half:]))
				for more := true; more; {
					var events []Event
					events, more = m.stale(nil, 2)
					require.LessOrEqual(t, len(events), 2)
					apply(events)
				}
			},
			"put": func(t *rapid.T) {
				source = maps.Clone(source)
				k, v := rapid.StringMatching(`[a-f]`).Draw(t, "key"), rapid.StringMatching(`[0-3]`).Draw(t, "value")
				source[k] = v
				apply(m.put(nil, []byte(k), []byte(v)))
			},
			"delete": func(t *rapid.T) {
				k := rapid.StringMatching(`[a-f]`).Draw(t, "key")
				source = maps.Clone(source)
				delete(source, k)
				apply(m.delete(nil, []byte(k)))
			},
			"": func(t *rapid.T) { require.Equal(t, source, got) },
		})
	})
}

func TestMirrorForget(t *testing.T) {
	m := newMirror()
	m.put(nil, []byte("a"), []byte("1"))
	m.put(nil, []byte("b"), []byte("1"))
	m.forget([]string{"a", "unknown"})
	require.Len(t, m.put(nil, []byte("a"), []byte("1")), 1, "forgotten, so told again")
	require.Empty(t, m.put(nil, []byte("a"), []byte("1")), "once")
	require.Empty(t, m.put(nil, []byte("b"), []byte("1")))
	m.forget(nil)
	require.Len(t, m.put(nil, []byte("b"), []byte("1")), 1)
}

// BenchmarkMirror is the cost of one key of a list, new and unchanged.
func BenchmarkMirror(b *testing.B) {
	const n = 10_000
	kvs := make([]*mvccpb.KeyValue, n)
	for i := range kvs {
		kvs[i] = &mvccpb.KeyValue{Key: fmt.Appendf(nil, "cilium/state/ip/v1/default/10.%d.%d.%d", i>>16, i>>8&255, i&255), Value: make([]byte, 200)}
	}
	var events []Event
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			events = newMirror().page(events[:0], 27, kvs)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
	})
	b.Run("unchanged", func(b *testing.B) {
		m := newMirror()
		m.page(nil, 27, kvs)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			m.beginList()
			events = m.page(events[:0], 27, kvs)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
	})
}

// TestNextPage has pages of the size that was asked for, and larger ones where
// much remains.
func TestNextPage(t *testing.T) {
	const size = 4 << 20
	for _, tc := range []struct {
		lastBytes, lastKeys, remaining int
		want                           int64
	}{
		{lastBytes: 300_000, lastKeys: 1000, remaining: 500, want: 13981},
		{lastBytes: 300_000, lastKeys: 1000, remaining: 100_000, want: 13981},
		{lastBytes: 300_000, lastKeys: 1000, remaining: 160_000, want: 20_000},
		{lastBytes: 300_000, lastKeys: 1000, remaining: 500_000, want: 4 * 13981},
		{lastBytes: 10 << 20, lastKeys: 1, remaining: 3, want: 1},
		{lastBytes: 0, lastKeys: 1000, remaining: 5, want: maxPage},
		{lastBytes: 1000, lastKeys: 1000, remaining: 10_000_000, want: maxPage},
	} {
		require.Equal(t, tc.want, nextPage(size, tc.lastBytes, tc.lastKeys, tc.remaining), "%+v", tc)
	}
}
