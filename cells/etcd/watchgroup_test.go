// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// groupPrefixes are neighbours; one of them begins like another.
var groupPrefixes = []string{"root/a/", "root/ab/", "root/b/"}

// TestWatchGroupAgainstModel has Readers of one group come and go, lose their
// connection and their history, while commits change keys of several of them at once
// and of nobody's. Whatever happens, each ends up with what its prefix holds, and was
// never told of a value that is older than one it had.
func TestWatchGroupAgainstModel(t *testing.T) {
	server := startServer(t, ServerConfig{})
	writer := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
	rapid.Check(t, func(rt *rapid.T) {
		_, err := writer.etcd.Delete(context.Background(), "root/", clientv3.WithPrefix())
		require.NoError(rt, err)
		link := newProxy(t, server)
		client := newTestClient(t, ClientConfig{Endpoints: []string{link.url()}})
		group := NewWatchGroup("root/")
		model := map[string]string{}
		readers, observers := map[string]*Reader{}, map[string]*recorder{}
		running := map[string]func(){}
		for _, prefix := range groupPrefixes {
			cfg := testReaderConfig(t)
			cfg.Prefix, cfg.Group = prefix, group
			observers[prefix] = newRecorder()
			readers[prefix] = NewReader(cfg, neverBack(rt, observers[prefix]))
		}
		defer func() {
			for _, stop := range running {
				stop()
			}
		}()
		key := rapid.Custom(func(rt *rapid.T) string {
			prefix := rapid.SampledFrom(append(groupPrefixes, "root/nobody/")).Draw(rt, "prefix")
			return prefix + rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "key")
		})
		value := 0
		var revision int64
		rt.Repeat(map[string]func(*rapid.T){
			"commit": func(rt *rapid.T) {
				var ops []clientv3.Op
				for _, k := range rapid.SliceOfNDistinct(key, 1, 5, rapid.ID).Draw(rt, "keys") {
					if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
						delete(model, k)
						ops = append(ops, clientv3.OpDelete(k))
						continue
					}
					value++
					model[k] = fmt.Sprint(value)
					ops = append(ops, clientv3.OpPut(k, model[k]))
				}
				resp, err := writer.etcd.Txn(context.Background()).Then(ops...).Commit()
				require.NoError(rt, err)
				revision = resp.Header.Revision
			},
			"start or stop": func(rt *rapid.T) {
				prefix := rapid.SampledFrom(groupPrefixes).Draw(rt, "reader")
				if stop := running[prefix]; stop != nil {
					stop()
					delete(running, prefix)
				} else {
					running[prefix] = startReader(t, readers[prefix], client)
				}
			},
			"cut": func(*rapid.T) { link.cut() },
			"compact": func(rt *rapid.T) {
				if revision > 0 {
					_, _ = writer.etcd.Compact(context.Background(), revision) // once is enough
				}
			},
			"settle": func(rt *rapid.T) {
				for prefix := range running {
					settles(rt, observers[prefix], prefix, model)
				}
			},
		})
		for _, prefix := range groupPrefixes {
			if running[prefix] == nil {
				running[prefix] = startReader(t, readers[prefix], client)
			}
		}
		for _, prefix := range groupPrefixes {
			settles(rt, observers[prefix], prefix, model)
		}
	})
}

// neverBack fails for values, which are numbers, that don't grow.
func neverBack(t require.TestingT, o Observer) Observer {
	last := map[string]int{}
	return ObserverFunc(func(ctx context.Context, b Batch) {
		for _, ev := range b.Events {
			if ev.Deleted {
				continue
			}
			now, err := strconv.Atoi(string(ev.Value))
			require.NoError(t, err)
			require.Greater(t, now, last[ev.Key], "%s", ev.Key)
			last[ev.Key] = now
		}
		o.OnBatch(ctx, b)
	})
}

// settles waits until an observer has what the model has below its prefix.
func settles(t require.TestingT, o *recorder, prefix string, model map[string]string) {
	want := map[string]string{}
	for k, v := range model {
		if key, ok := strings.CutPrefix(k, prefix); ok {
			want[key] = v
		}
	}
	var have map[string]string
	require.Eventually(t, func() bool {
		have, _, _, _ = o.state()
		return maps.Equal(want, have)
	}, patience, tick, "%s: have %v, want %v", prefix, have, want)
}

// TestWatchGroupIsOneWatch reads three prefixes, and one anew, over one watch of etcd;
// it ends with the last of them.
func TestWatchGroupIsOneWatch(t *testing.T) {
	server := startServer(t, ServerConfig{})
	client := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
	watchers := func(want int) {
		t.Helper()
		require.Eventually(t, func() bool { return metricNow(t, "etcd_debugging_mvcc_watcher_total") == float64(want) }, patience, tick)
	}
	watchers(0)
	group := NewWatchGroup("root/")
	var stops []func()
	start := func(prefix string) *recorder {
		cfg := testReaderConfig(t)
		cfg.Prefix, cfg.Group = prefix, group
		o := newRecorder()
		stops = append(stops, startReader(t, NewReader(cfg, o), client))
		return o
	}
	var observers []*recorder
	for _, prefix := range groupPrefixes {
		put(t, client, prefix+"before", "1")
		observers = append(observers, start(prefix))
	}
	put(t, client, "root/a/after", "1", "root/ab/after", "1", "root/b/after", "1")
	for _, o := range observers {
		o.eventually(t, map[string]string{"before": "1", "after": "1"})
	}
	watchers(1)

	// One that comes late, to a prefix that is read already.
	put(t, client, "root/b/late", "1")
	late := start("root/b/")
	put(t, client, "root/b/later", "1")
	all := map[string]string{"before": "1", "after": "1", "late": "1", "later": "1"}
	late.eventually(t, all)
	observers[2].eventually(t, all)
	watchers(1)

	for _, stop := range stops {
		stop()
	}
	watchers(0)
}

// TestWatchGroupKeepsWhatASlowReaderHasNotTaken holds one Reader up, while the other
// goes on.
func TestWatchGroupKeepsWhatASlowReaderHasNotTaken(t *testing.T) {
	server := startServer(t, ServerConfig{})
	client := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
	group := NewWatchGroup("root/")
	held, quick := make(chan struct{}), newRecorder()
	slow := newRecorder()
	hold := ObserverFunc(func(ctx context.Context, b Batch) {
		if len(b.Events) > 0 {
			<-held
		}
		slow.OnBatch(ctx, b)
	})
	cfg := testReaderConfig(t)
	cfg.Group = group
	cfg.Prefix = "root/a/"
	defer startReader(t, NewReader(cfg, hold), client)()
	cfg.Prefix = "root/b/"
	defer startReader(t, NewReader(cfg, quick), client)()
	want := map[string]string{}
	for i := range 50 {
		key := fmt.Sprint(i)
		want[key] = key
		put(t, client, "root/a/"+key, key, "root/b/"+key, key)
		if i == 0 {
			quick.eventually(t, want)
		}
	}
	quick.eventually(t, want)
	have, _, _, _ := slow.state()
	require.Empty(t, have)
	close(held)
	slow.eventually(t, want)
}

// TestWatchGroupCompacted has one Reader come back from before a compaction. The other,
// which has all, lists nothing for that.
func TestWatchGroupCompacted(t *testing.T) {
	server := startServer(t, ServerConfig{})
	client := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
	group := NewWatchGroup("root/")
	reader := func(prefix string) (*Reader, *recorder) {
		cfg := testReaderConfig(t)
		cfg.Prefix, cfg.Group = prefix, group
		o := newRecorder()
		return NewReader(cfg, o), o
	}
	put(t, client, "root/a/1", "1", "root/b/1", "1")
	stays, have := reader("root/a/")
	defer startReader(t, stays, client)()
	back, had := reader("root/b/")
	stop := startReader(t, back, client)
	put(t, client, "root/a/2", "1", "root/b/2", "1")
	have.eventually(t, map[string]string{"1": "1", "2": "1"})
	had.eventually(t, map[string]string{"1": "1", "2": "1"})
	stop()

	put(t, client, "root/b/1", "2", "root/a/3", "1")
	have.eventually(t, map[string]string{"1": "1", "2": "1", "3": "1"})
	resp, err := client.etcd.Get(t.Context(), "root/")
	require.NoError(t, err)
	_, err = client.etcd.Compact(t.Context(), resp.Header.Revision)
	require.NoError(t, err)

	defer startReader(t, back, client)()
	put(t, client, "root/a/4", "1", "root/b/3", "1")
	had.eventually(t, map[string]string{"1": "2", "2": "1", "3": "1"})
	have.eventually(t, map[string]string{"1": "1", "2": "1", "3": "1", "4": "1"})
	require.EqualValues(t, 2, back.Lists())
	require.EqualValues(t, 1, stays.Lists())
}

// BenchmarkWatchGroup is what the division costs this process: ns for each event of a
// commit over four prefixes.
func BenchmarkWatchGroup(b *testing.B) {
	group := NewWatchGroup("root/")
	c := &groupWatch{members: map[*groupMember]struct{}{}}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for _, prefix := range append(groupPrefixes, "root/c/") {
		m := &groupMember{prefix: []byte(prefix), out: make(chan clientv3.WatchResponse), ready: make(chan struct{}, 1)}
		c.members[m] = struct{}{}
		go m.pump(ctx)
		go func() {
			for range m.out {
			}
		}()
	}
	const events = 20
	var resp clientv3.WatchResponse
	for i := range events {
		resp.Events = append(resp.Events, eventOf(groupPrefixes[i%3]+fmt.Sprint(i), int64(i+1)))
	}
	began := time.Now()
	for b.Loop() {
		group.hand(c, 0, resp)
	}
	b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(b.N*events), "ns/event")
}

func eventOf(key string, revision int64) *clientv3.Event {
	return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}
}

// metricNow is a sum of etcd's own metrics in this process.
func metricNow(t testing.TB, name string) (sum float64) {
	families, err := prometheus.DefaultGatherer.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum
}
