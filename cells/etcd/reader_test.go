// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Loggers of embedded servers that outlive them, and a pool of gRPC's.
		goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"),
	)
}

const patience, tick = time.Minute, 5 * time.Millisecond

func startServer(t testing.TB, cfg ServerConfig) *Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.ListenURL == "" {
		cfg.ListenURL = "http://127.0.0.1:0"
	}
	s, err := StartServer(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestServerOnSocket(t *testing.T) {
	s := startServer(t, ServerConfig{ListenURL: "unix://" + filepath.Join(t.TempDir(), "etcd.sock")})
	c := newTestClient(t, ClientConfig{Endpoints: []string{s.URL()}})
	put(t, c, "p/a", "1")
	require.Equal(t, map[string]string{"a": "1"}, content(t, c, "p/"))
}

func newTestClient(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(hivetest.Logger(t, hivetest.LogLevel(slog.LevelError)), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// proxy is an address behind which etcds come and go.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	target   string
	conns    map[net.Conn]struct{}
}

func newProxy(t testing.TB, target *Server) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: l, conns: map[net.Conn]struct{}{}}
	p.set(target)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); p.cut(); wg.Wait() })
	return p
}

func (p *proxy) url() string { return "http://" + p.listener.Addr().String() }

// set chooses the etcd that new connections reach; nil is none.
func (p *proxy) set(s *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = ""
	if s != nil {
		p.target = strings.TrimPrefix(s.URL(), "http://")
	}
}

// cut breaks the connections that exist.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) serve(conn net.Conn) {
	defer conn.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	upstream, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer upstream.Close()
	p.mu.Lock()
	p.conns[conn], p.conns[upstream] = struct{}{}, struct{}{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		dst.Close()
		src.Close()
	}
	wg.Go(func() { pipe(upstream, conn) })
	pipe(conn, upstream)
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, conn)
	delete(p.conns, upstream)
	p.mu.Unlock()
}

// recorder is an Observer that rebuilds what the source holds.
type recorder struct {
	mu      sync.Mutex
	content map[string]string
	events  int
	deletes int
	synced  int
}

func newRecorder() *recorder { return &recorder{content: map[string]string{}} }

func (r *recorder) OnBatch(_ context.Context, b Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ev := range b.Events {
		r.events++
		if ev.Deleted {
			r.deletes++
			delete(r.content, ev.Key)
		} else {
			r.content[ev.Key] = string(ev.Value)
		}
	}
	if b.Synced {
		r.synced++
	}
}

func (r *recorder) state() (content map[string]string, events, deletes, synced int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.content), r.events, r.deletes, r.synced
}

func (r *recorder) eventually(t testing.TB, want map[string]string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		got, _, _, _ := r.state()
		require.Equal(c, want, got)
	}, patience, tick)
}

func startReader(t testing.TB, r *Reader, c *Client) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx, c) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func testReaderConfig(t testing.TB) ReaderConfig {
	return ReaderConfig{Log: hivetest.Logger(t, hivetest.LogLevel(slog.LevelError)), Prefix: "p/", RelistJitter: -1}
}

func put(t testing.TB, c *Client, kv ...string) {
	t.Helper()
	for i := 0; i < len(kv); i += 2 {
		_, err := c.etcd.Put(t.Context(), kv[i], kv[i+1])
		require.NoError(t, err)
	}
}

func remove(t testing.TB, c *Client, key string) {
	t.Helper()
	_, err := c.etcd.Delete(t.Context(), key)
	require.NoError(t, err)
}

func TestReaderFollows(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1", "p/b", "1", "q/x", "1")
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	startReader(t, r, c)
	rec.eventually(t, map[string]string{"a": "1", "b": "1"})
	put(t, c, "p/a", "2", "p/c", "1")
	remove(t, c, "p/b")
	rec.eventually(t, map[string]string{"a": "2", "c": "1"})
	require.True(t, r.Synced())
}

// TestReaderPages lists more than one page, while the prefix is being changed.
func TestReaderPages(t *testing.T) {
	opts := DefaultOptions
	opts.PageBytes = 64 << 10
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}, Options: opts})
	want := map[string]string{}
	w := startWriter(t, c)
	s := w.Scope(ScopeConfig{Prefix: "p/"})
	var ops []Op
	for i := range 10_000 {
		k := fmt.Sprintf("%05d", i)
		want[k] = "v" + k
		ops = append(ops, Op{Key: k, Value: []byte("v" + k)})
	}
	s.Apply(ops)
	require.NoError(t, s.Barrier(t.Context()))
	delete(want, "09999") // see below
	for _, ahead := range []bool{false, true} {
		put(t, c, "p/09999", "v")
		rec := newRecorder()
		cfg := testReaderConfig(t)
		cfg.ReadAhead = ahead
		r := NewReader(cfg, ObserverFunc(func(ctx context.Context, b Batch) {
			if b.Listing && len(rec.content) == 0 {
				remove(t, c, "p/09999") // between the first page and the second
			}
			rec.OnBatch(ctx, b)
		}))
		stop := startReader(t, r, c)
		rec.eventually(t, want)
		require.EqualValues(t, 1, r.Lists())
		stop()
	}
}

// TestReaderPageOfLargeValues has a page that is larger than gRPC would take by
// default, since the values of the page before it were small.
func TestReaderPageOfLargeValues(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	want := numbered(firstPage, "small")
	large := strings.Repeat("large", 1000)
	for i := range 1500 {
		want[fmt.Sprintf("%06d", firstPage+i)] = large
	}
	s := startWriter(t, c).Scope(ScopeConfig{Prefix: "p/"})
	s.Apply(ops(want))
	require.NoError(t, s.Barrier(t.Context()))
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	startReader(t, r, c)
	rec.eventually(t, want)
	require.EqualValues(t, 1, r.Lists())
}

// TestReaderCanary holds deletions back until the source is complete.
func TestReaderCanary(t *testing.T) {
	first := startServer(t, ServerConfig{})
	p := newProxy(t, first)
	direct := newTestClient(t, ClientConfig{Endpoints: []string{first.URL()}})
	put(t, direct, "p/a", "1", "p/b", "1", "canary", "x")
	rec := newRecorder()
	cfg := testReaderConfig(t)
	cfg.Canary = "canary"
	r := NewReader(cfg, rec)
	startReader(t, r, newTestClient(t, ClientConfig{Endpoints: []string{p.url()}}))
	rec.eventually(t, map[string]string{"a": "1", "b": "1"})
	require.Eventually(t, r.Synced, patience, tick)

	// A replica that is still filling up.
	second := startServer(t, ServerConfig{})
	other := newTestClient(t, ClientConfig{Endpoints: []string{second.URL()}})
	put(t, other, "p/a", "2")
	p.set(second)
	p.cut()
	rec.eventually(t, map[string]string{"a": "2", "b": "1"})
	_, _, _, synced := rec.state()
	put(t, other, "p/c", "1")
	rec.eventually(t, map[string]string{"a": "2", "b": "1", "c": "1"})
	put(t, other, "canary", "x")
	rec.eventually(t, map[string]string{"a": "2", "c": "1"})
	require.Eventually(t, func() bool { _, _, _, now := rec.state(); return now > synced }, patience, tick)
}

// TestReaderCanaryRace puts the canary between the moment that the Reader
// looked for it and its list.
func TestReaderCanaryAppearsDuringList(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1")
	rec, once := newRecorder(), sync.Once{}
	cfg := testReaderConfig(t)
	cfg.Canary = "canary"
	r := NewReader(cfg, ObserverFunc(func(ctx context.Context, b Batch) {
		once.Do(func() { put(t, c, "canary", "x") })
		rec.OnBatch(ctx, b)
	}))
	startReader(t, r, c)
	require.Eventually(t, r.Synced, patience, tick)
}

// TestReaderOtherEtcd swaps the etcd behind an address for one with other
// content, in each way that it can be told, or not told, from the first.
func TestReaderOtherEtcd(t *testing.T) {
	for name, test := range map[string]struct {
		token string // of both etcds; empty is random
		extra int    // writes that raise the second's revision
	}{
		"another cluster ID":                     {"", 0},
		"another cluster ID, higher revision":    {"", 50},
		"the same cluster ID at a lower one":     {"same", -1},
		"the same cluster ID at a higher one":    {"same", 50},
		"the same cluster ID at exactly the one": {"same", 0},
	} {
		t.Run(name, func(t *testing.T) {
			first := startServer(t, ServerConfig{Token: test.token})
			second := startServer(t, ServerConfig{Token: test.token})
			a := newTestClient(t, ClientConfig{Endpoints: []string{first.URL()}})
			b := newTestClient(t, ClientConfig{Endpoints: []string{second.URL()}})
			put(t, a, "p/stay", "1", "p/change", "1", "p/go", "1")
			// Different first keys, so that the histories differ at each revision.
			put(t, b, "p/come", "1", "p/change", "2")
			if test.extra >= 0 {
				put(t, b, "p/stay", "1")
			}
			for range test.extra {
				put(t, b, "x", "1")
			}
			p := newProxy(t, first)
			rec := newRecorder()
			r := NewReader(testReaderConfig(t), rec)
			startReader(t, r, newTestClient(t, ClientConfig{Endpoints: []string{p.url()}}))
			rec.eventually(t, map[string]string{"stay": "1", "change": "1", "go": "1"})
			p.set(second)
			p.cut()
			want := map[string]string{"stay": "1", "change": "2", "come": "1"}
			if test.extra < 0 {
				delete(want, "stay")
			}
			rec.eventually(t, want)
			put(t, b, "p/after", "1")
			want["after"] = "1"
			rec.eventually(t, want)
		})
	}
}

// TestReaderListEndsHalfway is sent to another etcd, loses it in the middle of
// its list, and comes back to the first, which has all that a resume needs.
func TestReaderListEndsHalfway(t *testing.T) {
	first := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	second := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, first, "p/000000", "first", "p/x", "first")
	w, stop := runWriter(t, second)
	s := w.Scope(ScopeConfig{Prefix: "p/"})
	s.Apply(ops(numbered(firstPage+500, "second")))
	require.NoError(t, s.Barrier(t.Context()))
	stop()

	rec := newRecorder()
	var interrupt context.CancelFunc
	cfg := testReaderConfig(t)
	cfg.ReadAhead = true // the page after the one in whose course it ends is given up
	r := NewReader(cfg, ObserverFunc(func(ctx context.Context, b Batch) {
		rec.OnBatch(ctx, b)
		if interrupt != nil {
			interrupt()
		}
	}))
	want := map[string]string{"000000": "first", "x": "first"}
	stopReader := startReader(t, r, first)
	rec.eventually(t, want)
	require.Eventually(t, r.Synced, patience, tick)
	stopReader()

	var ctx context.Context
	ctx, interrupt = context.WithCancel(t.Context())
	require.NoError(t, r.Run(ctx, second))
	content, _, _, _ := rec.state()
	require.Equal(t, "second", content["000000"])
	require.Len(t, content, firstPage+1, "a page of the second, and what is only in the first")

	interrupt = nil
	startReader(t, r, first)
	rec.eventually(t, want)
}

// TestReaderResumes comes back to the same etcd without a list.
func TestReaderResumes(t *testing.T) {
	s := startServer(t, ServerConfig{})
	p := newProxy(t, s)
	direct := newTestClient(t, ClientConfig{Endpoints: []string{s.URL()}})
	put(t, direct, "p/a", "1")
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	client := newTestClient(t, ClientConfig{Endpoints: []string{p.url()}})
	startReader(t, r, client)
	rec.eventually(t, map[string]string{"a": "1"})
	require.Eventually(t, r.Synced, patience, tick) // a list that is cut off is made again
	lists := r.Lists()
	for i := range 3 {
		before, _ := client.Generation()
		p.cut()
		put(t, direct, "p/a", fmt.Sprint(i+2), "p/b", fmt.Sprint(i))
		rec.eventually(t, map[string]string{"a": fmt.Sprint(i + 2), "b": fmt.Sprint(i)})
		after, _ := client.Generation()
		require.Greater(t, after, before)
	}
	require.Equal(t, lists, r.Lists(), "each return was a resume")
}

// TestReaderCompacted was away for so long that the history is gone.
func TestReaderCompacted(t *testing.T) {
	s := startServer(t, ServerConfig{})
	p := newProxy(t, s)
	direct := newTestClient(t, ClientConfig{Endpoints: []string{s.URL()}})
	put(t, direct, "p/a", "1", "p/b", "1", "p/c", "1")
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	startReader(t, r, newTestClient(t, ClientConfig{Endpoints: []string{p.url()}}))
	rec.eventually(t, map[string]string{"a": "1", "b": "1", "c": "1"})
	p.set(nil)
	p.cut()
	remove(t, direct, "p/b")
	put(t, direct, "p/a", "2")
	resp, err := direct.etcd.Put(t.Context(), "p/d", "1")
	require.NoError(t, err)
	_, err = direct.etcd.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	_, before, _, _ := rec.state()
	p.set(s)
	rec.eventually(t, map[string]string{"a": "2", "c": "1", "d": "1"})
	_, after, _, _ := rec.state()
	require.Equal(t, 3, after-before, "only the difference is told")
}

func TestReaderDrainAndAgain(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1", "p/b", "1")
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	stop := startReader(t, r, c)
	rec.eventually(t, map[string]string{"a": "1", "b": "1"})
	stop()
	r.Drain(t.Context())
	require.Empty(t, rec.content)
	require.False(t, r.Synced())
	startReader(t, r, c)
	rec.eventually(t, map[string]string{"a": "1", "b": "1"})
}

func TestReaderResend(t *testing.T) {
	c := newTestClient(t, ClientConfig{Endpoints: []string{startServer(t, ServerConfig{}).URL()}})
	put(t, c, "p/a", "1", "p/b", "1", "p/c", "1")
	rec := newRecorder()
	r := NewReader(testReaderConfig(t), rec)
	startReader(t, r, c)
	rec.eventually(t, map[string]string{"a": "1", "b": "1", "c": "1"})
	_, _, _, synced := rec.state()
	events := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool {
			_, events, _, s := rec.state()
			return events == n && s == synced+1
		}, patience, tick)
		synced++
	}
	r.Resend([]string{"b"})
	events(4)
	r.Resend(nil)
	events(7)
}

// TestReaderUnreachable keeps what it knows and says why it can't follow.
func TestReaderUnreachable(t *testing.T) {
	s := startServer(t, ServerConfig{})
	p := newProxy(t, s)
	direct := newTestClient(t, ClientConfig{Endpoints: []string{s.URL()}})
	put(t, direct, "p/a", "1")
	rec := newRecorder()
	cfg := testReaderConfig(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	r := NewReader(cfg, rec)
	client := newTestClient(t, ClientConfig{Endpoints: []string{p.url()}})
	stop := startReader(t, r, client)
	rec.eventually(t, map[string]string{"a": "1"})
	stop()
	p.set(nil)
	p.cut()
	startReader(t, r, client)
	require.Eventually(t, func() bool { return r.LastError() != nil }, patience, tick)
	require.True(t, r.Synced())
	_, _, deletes, _ := rec.state()
	require.Zero(t, deletes)
	p.set(s)
	require.Eventually(t, func() bool { return r.LastError() == nil }, patience, tick)
}

func TestClientConfigErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	write := func(content string) string {
		path := dir + "/cluster1"
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for name, test := range map[string]struct{ path, content, want string }{
		"missing":        {path: dir + "/none", want: "none"},
		"half written":   {content: "endpoints:\n- http://127.0.0.1:1\ntrusted-ca-file: '/x", want: "cluster1"},
		"no endpoints":   {content: "insecure-transport: true\n", want: "no endpoints"},
		"absent CA":      {content: "endpoints: [https://127.0.0.1:1]\ntrusted-ca-file: /nonexistent/ca.crt\n", want: "/nonexistent/ca.crt"},
		"no file at all": {path: "-", want: "no endpoints"},
	} {
		t.Run(name, func(t *testing.T) {
			path := test.path
			switch path {
			case "":
				path = write(test.content)
			case "-":
				path = ""
			}
			_, err := NewClient(log, ClientConfig{ConfigPath: path})
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestParseOptions(t *testing.T) {
	opts, err := ParseOptions(map[string]string{"etcd.qps": "5", "etcd.commitDelay": "1s", "etcd.config": "x", "etcd.limit": "256"})
	require.NoError(t, err)
	require.Equal(t, 5, opts.QPS)
	require.Equal(t, time.Second, opts.CommitDelay)
	require.Equal(t, DefaultOptions.MaxInflight, opts.MaxInflight)
	_, err = ParseOptions(map[string]string{"etcd.qps": "many", "etcd.qsp": "1", "etcd.commitDelay": "-1s"})
	for _, want := range []string{`etcd.qps="many"`, "etcd.qsp", `etcd.commitDelay="-1s"`} {
		require.ErrorContains(t, err, want)
	}
}
