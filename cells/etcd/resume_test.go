// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// keeper is an Observer that keeps what it has for a Reader of a later process: its
// content at the last Position.
type keeper struct {
	mu      sync.Mutex
	content map[string]string
	deleted map[string]bool // since it was made
	kept    map[string]string
	at      *Position
	synced  []map[string]string // the content at each Synced batch
}

func newKeeper(content map[string]string) *keeper {
	return &keeper{content: maps.Clone(content), deleted: map[string]bool{}}
}

func (k *keeper) OnBatch(_ context.Context, b Batch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ev := range b.Events {
		if ev.Deleted {
			k.deleted[ev.Key] = true
			delete(k.content, ev.Key)
		} else {
			k.content[ev.Key] = string(ev.Value)
		}
	}
	if b.Position != nil {
		k.at, k.kept = b.Position, maps.Clone(k.content)
	}
	if b.Synced {
		k.synced = append(k.synced, maps.Clone(k.content))
	}
}

func (k *keeper) read(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn()
}

// has waits until the content is want, at a Position.
func (k *keeper) has(t require.TestingT, want map[string]string) {
	require.Eventually(t, func() (has bool) {
		k.read(func() { has = maps.Equal(want, k.content) && k.at != nil })
		return has
	}, patience, tick)
}

// resumed makes a Reader that goes on where before was.
func resumed(cfg ReaderConfig, before *keeper) (*Reader, *keeper) {
	after := newKeeper(before.kept)
	r := NewReader(cfg, after)
	for key, value := range before.kept {
		r.Remember(key, []byte(value))
	}
	r.Seed(*before.at)
	return r, after
}

func resumeConfig(t testing.TB, prefix string) ReaderConfig {
	cfg := testReaderConfig(t)
	cfg.Prefix, cfg.Progress, cfg.RelistJitter = prefix, time.Hour, time.Millisecond
	return cfg
}

// TestResume is restarted at etcds that can be told from the one before in each
// way, and at that one itself.
func TestResume(t *testing.T) {
	for name, test := range map[string]struct {
		token   string // of both etcds; "-" is the first one itself
		extra   int    // writes that raise the second's revision
		compact bool
		want    Start
	}{
		"the same etcd, and nothing happened": {token: "-", extra: -1, want: Start{Resumed: true}},
		"the same etcd":                       {token: "-", want: Start{Resumed: true}},
		"the same etcd, busy elsewhere":       {token: "-", extra: 20, want: Start{Resumed: true}},
		"the same etcd, compacted":            {token: "-", compact: true, want: Start{Relisted: RelistedCompacted}},
		"another cluster ID":                  {want: Start{Relisted: RelistedOtherEtcd}},
		"the same cluster ID, lower":          {token: "same", extra: -1, want: Start{Relisted: RelistedOtherEtcd}},
		"the same cluster ID, higher":         {token: "same", extra: 50, want: Start{Relisted: RelistedOtherEtcd}},
	} {
		t.Run(name, func(t *testing.T) {
			server := startServer(t, ServerConfig{Token: test.token})
			client := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
			put(t, client, "p/stay", "1", "p/change", "1", "p/go", "1", "q/x", "1")
			cfg := resumeConfig(t, "p/")
			first := newKeeper(nil)
			first.content = map[string]string{}
			r := NewReader(cfg, first)
			stop := startReader(t, r, client)
			want := map[string]string{"stay": "1", "change": "1", "go": "1"}
			first.has(t, want)
			stop()
			require.Equal(t, Start{}, r.Start())

			if test.token != "-" {
				server = startServer(t, ServerConfig{Token: test.token})
				client = newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}})
				put(t, client, "p/come", "1", "p/stay", "1")
				want = map[string]string{"stay": "1", "come": "1"}
			} else if test.extra >= 0 {
				remove(t, client, "p/go")
				put(t, client, "p/change", "2", "p/come", "1")
				want = map[string]string{"stay": "1", "change": "2", "come": "1"}
			}
			for range test.extra {
				put(t, client, "q/x", "1")
			}
			if test.compact {
				resp, err := client.etcd.Get(t.Context(), "x")
				require.NoError(t, err)
				_, err = client.etcd.Compact(t.Context(), resp.Header.Revision)
				require.NoError(t, err)
			}

			r, second := resumed(cfg, first)
			require.Equal(t, Start{Pending: true}, r.Start())
			require.False(t, r.Synced())
			require.Zero(t, r.relistPause())
			require.Equal(t, 3, r.memory.size())
			startReader(t, r, client)
			require.Eventually(t, r.Synced, patience, tick)
			require.Eventually(t, func() bool { return r.Start() == test.want }, patience, tick, "%+v", r.Start())
			require.EqualValues(t, test.want.Resumed, r.Lists() == 0)
			require.Equal(t, cfg.RelistJitter, r.relistPause(), "the next list is none that somebody waits for")
			second.has(t, want)
			second.read(func() {
				require.Equal(t, want, second.synced[0], "synced only with all that there was")
				require.NotContains(t, second.deleted, "stay")
			})
			put(t, client, "p/after", "1")
			want["after"] = "1"
			second.has(t, want)
		})
	}
}

// TestResumeIsNotConfirmed has a watch whose etcd never says how far it is, since
// another one of its stream begins in the future.
func TestResumeIsNotConfirmed(t *testing.T) {
	client := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, client, "p/a", "1")
	cfg := resumeConfig(t, "p/")
	first := newKeeper(map[string]string{})
	stop := startReader(t, NewReader(cfg, first), client)
	first.has(t, map[string]string{"a": "1"})
	stop()
	put(t, client, "q/x", "1")
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(t.Context()))
	defer cancel()
	client.etcd.Watch(ctx, "future", clientv3.WithRev(1000))

	r, second := resumed(cfg, first)
	r.confirmPatience = 100 * time.Millisecond
	startReader(t, r, client)
	require.Eventually(t, r.Synced, patience, tick)
	require.Eventually(t, func() bool { return r.Start() == Start{Relisted: RelistedUnconfirmed} }, patience, tick)
	second.has(t, map[string]string{"a": "1"})
}

// TestResumeBesideAnother resumes where nothing is written any more, and one of two
// watches begins at what the etcd has last: the other learns how far it is all the same.
func TestResumeBesideAnother(t *testing.T) {
	client := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	var (
		before []*keeper
		cfgs   []ReaderConfig
	)
	want := map[string]string{"a": "1"}
	for _, prefix := range []string{"p/", "q/"} {
		put(t, client, prefix+"a", "1")
		k, cfg := newKeeper(map[string]string{}), resumeConfig(t, prefix)
		stop := startReader(t, NewReader(cfg, k), client)
		k.has(t, want)
		stop()
		before, cfgs = append(before, k), append(cfgs, cfg)
	}
	require.Less(t, before[0].at.Revision, before[1].at.Revision)
	// The one that is up to date comes first, and is confirmed by itself.
	last, _ := resumed(cfgs[1], before[1])
	startReader(t, last, client)
	require.Eventually(t, last.Synced, patience, tick)
	r, after := resumed(cfgs[0], before[0])
	startReader(t, r, client)
	require.Eventually(t, r.Synced, patience, tick)
	require.Equal(t, Start{Resumed: true}, r.Start())
	require.Zero(t, r.Lists())
	put(t, client, "p/b", "1")
	after.has(t, map[string]string{"a": "1", "b": "1"})
}

// TestResumeAwaitsTheCanary reaches an etcd that is another one, and not complete.
func TestResumeAwaitsTheCanary(t *testing.T) {
	client := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, client, "p/a", "1", "p/b", "1", "canary", "x")
	cfg := resumeConfig(t, "p/")
	cfg.Canary = "canary"
	first := newKeeper(map[string]string{})
	stop := startReader(t, NewReader(cfg, first), client)
	first.has(t, map[string]string{"a": "1", "b": "1"})
	stop()

	client = newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, client, "p/a", "2")
	r, second := resumed(cfg, first)
	startReader(t, r, client)
	put(t, client, "p/c", "1") // by the list or by the watch
	require.Eventually(t, func() (all bool) {
		second.read(func() { all = second.content["a"] == "2" && second.content["c"] == "1" })
		return all
	}, patience, tick)
	second.read(func() {
		require.Nil(t, second.at, "no position that an incomplete etcd gives is to be kept")
		require.Contains(t, second.content, "b")
	})
	require.False(t, r.Synced())
	require.True(t, r.Start().Pending)
	put(t, client, "canary", "x")
	second.has(t, map[string]string{"a": "2", "c": "1"})
	require.Equal(t, Start{Relisted: RelistedOtherEtcd}, r.Start())
}

// TestProgress keeps up with an etcd that is busy elsewhere.
func TestProgress(t *testing.T) {
	client := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, client, "p/a", "1")
	cfg := resumeConfig(t, "p/")
	cfg.Progress = 5 * time.Millisecond
	k := newKeeper(map[string]string{})
	startReader(t, NewReader(cfg, k), client)
	k.has(t, map[string]string{"a": "1"})
	for i := range 3 {
		resp, err := client.etcd.Put(t.Context(), "q/x", fmt.Sprint(i))
		require.NoError(t, err)
		require.Eventually(t, func() (reached bool) {
			k.read(func() { reached = k.at.Revision >= resp.Header.Revision })
			return reached
		}, patience, tick)
	}
}

// TestResumeAgainstModel restarts Readers at random points of random histories, at
// the same etcd, at one that was compacted, and at one that has the same cluster ID
// and another history. Whatever happens, the Observer has in the end what the etcd
// has, knows when it does, and is told of no deletion of a key that stayed.
func TestResumeAgainstModel(t *testing.T) {
	var clients []*Client
	for range 2 {
		server := startServer(t, ServerConfig{Token: "same"})
		clients = append(clients, newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}}))
	}
	// The second is ahead of the first, and is overtaken in the course of the test.
	for range 300 {
		put(t, clients[1], "x", "1")
	}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &resumeModel{T: rt, clients: clients, cfg: resumeConfig(t, fmt.Sprintf("p%d/", run)),
			source: []map[string]string{{}, {}}, history: [][]moment{{{}}, {{}}}}
		for range rapid.IntRange(1, 4).Draw(rt, "restarts") {
			m.away()
			stop := m.start()
			if rapid.Bool().Draw(rt, "wait") {
				require.Eventually(rt, m.reader.Synced, patience, time.Millisecond)
				m.change()
				if rapid.Bool().Draw(rt, "catch up") {
					m.observer.has(rt, m.source[m.current])
				}
			} // else it is killed at whatever it does
			stop()
			m.check()
		}
		stop := m.start()
		defer stop()
		m.observer.has(rt, m.source[m.current])
		m.check()
	})
}

// resumeModel is two etcds, of which one is read, and the Readers that follow each
// other.
type resumeModel struct {
	*rapid.T
	clients  []*Client
	current  int
	source   []map[string]string // what each etcd has
	history  [][]moment          // what each had, since each revision; nothing at first
	cfg      ReaderConfig
	reader   *Reader
	observer *keeper

	saved   *keeper           // the last one that came to a Position
	savedAt int               // the etcd that it was at
	began   map[string]string // what the etcd had when the Reader began
	// gone is the first moment that the running Reader may tell of.
	gone int
}

type moment struct {
	revision int64
	content  map[string]string
}

// change writes to the etcd that is read.
func (m *resumeModel) change() {
	client, source := m.clients[m.current], m.source[m.current]
	record := func(revision int64) {
		m.history[m.current] = append(m.history[m.current], moment{revision, maps.Clone(source)})
	}
	for range rapid.IntRange(0, 4).Draw(m.T, "changes") {
		key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(m.T, "key")
		if rapid.IntRange(0, 2).Draw(m.T, "kind") == 0 {
			resp, err := client.etcd.Delete(context.Background(), m.cfg.Prefix+key)
			require.NoError(m, err)
			delete(source, key)
			record(resp.Header.Revision)
		} else {
			value := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(m.T, "value")
			resp, err := client.etcd.Put(context.Background(), m.cfg.Prefix+key, value)
			require.NoError(m, err)
			source[key] = value
			record(resp.Header.Revision)
		}
	}
	if rapid.Bool().Draw(m.T, "elsewhere") {
		resp, err := client.etcd.Put(context.Background(), "x", "1")
		require.NoError(m, err)
		record(resp.Header.Revision)
	}
}

// away is what happens while no Reader runs.
func (m *resumeModel) away() {
	m.change()
	switch rapid.SampledFrom([]string{"same", "same", "compacted", "other"}).Draw(m.T, "etcd") {
	case "compacted":
		client := m.clients[m.current]
		resp, err := client.etcd.Put(context.Background(), "x", "1")
		require.NoError(m, err)
		_, err = client.etcd.Compact(context.Background(), resp.Header.Revision)
		require.NoError(m, err)
	case "other":
		m.current = 1 - m.current
		m.change()
	}
}

// start starts a Reader from what the last one has left.
func (m *resumeModel) start() (stop func()) {
	m.gone = len(m.history[m.current]) // from the state there is now
	if m.saved == nil {
		m.observer = newKeeper(map[string]string{})
		m.reader = NewReader(m.cfg, m.observer)
	} else {
		m.reader, m.observer = resumed(m.cfg, m.saved)
		if m.savedAt == m.current {
			m.gone = 0
			for m.gone < len(m.history[m.current]) && m.history[m.current][m.gone].revision <= m.saved.at.Revision {
				m.gone++
			}
		}
	}
	m.gone = max(m.gone-1, 0)
	m.began = maps.Clone(m.source[m.current])
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = m.reader.Run(ctx, m.clients[m.current]) })
	return func() { cancel(); running.Wait() }
}

// check looks at what the Observer was told.
func (m *resumeModel) check() {
	m.observer.mu.Lock()
	defer m.observer.mu.Unlock()
	for key := range m.observer.deleted {
		gone := false
		for _, moment := range m.history[m.current][m.gone:] {
			if _, there := moment.content[key]; !there {
				gone = true
			}
		}
		require.True(m, gone, "%q was never gone", key)
	}
	if len(m.observer.synced) > 0 { // nothing changes before
		require.Equal(m, m.began, m.observer.synced[0], "synced before all was told")
	}
	if m.observer.at != nil {
		m.saved, m.savedAt = m.observer, m.current
	}
}
