// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cilium/hive/hivetest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// caller is one client of a ListBound, whose etcd answers as it is told.
type caller struct {
	bound *ListBound
	ctx   context.Context
}

func newCaller(bound *ListBound, port int) caller {
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	return caller{bound, peer.NewContext(context.Background(), &peer.Peer{Addr: addr})}
}

// list asks for a page: the first one where revision is 0.
func (c caller) list(revision int64, more bool) error {
	_, err := c.bound.intercept(c.ctx, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), Revision: revision},
		nil, func(context.Context, any) (any, error) {
			return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 7}, More: more}, nil
		})
	return err
}

func requirePostponed(t *testing.T, err error) time.Duration {
	t.Helper()
	require.Equal(t, codes.ResourceExhausted, status.Code(err), "%v", err)
	delay, ok := postponement(err)
	require.True(t, ok, "%v", err)
	return delay
}

func TestListBoundKeepsPlaces(t *testing.T) {
	bound := NewListBound(2)
	now := time.Now()
	bound.now = func() time.Time { return now }
	a, b, c := newCaller(bound, 1), newCaller(bound, 2), newCaller(bound, 3)

	require.NoError(t, a.list(0, true))
	require.NoError(t, b.list(0, true))
	requirePostponed(t, c.list(0, true))
	require.NoError(t, a.list(7, true), "a list that was begun goes on")
	requirePostponed(t, c.list(0, true))
	require.NoError(t, a.list(7, false), "its last page")
	require.NoError(t, c.list(0, true), "frees its place")
	requirePostponed(t, a.list(0, true))
	require.Equal(t, 2, bound.Stats().Open)

	// Nobody continues the two: their places are free after a while.
	now = now.Add(listPatience + time.Second)
	require.NoError(t, a.list(0, true))
	require.EqualValues(t, 2, bound.Stats().Abandoned)
	// One that comes back takes a place as any other would.
	require.NoError(t, b.list(7, true))
	requirePostponed(t, c.list(7, true))
	require.Equal(t, 2, bound.Stats().Peak)
}

func TestListBoundFreesPlacesOfFailures(t *testing.T) {
	bound := NewListBound(1)
	c := newCaller(bound, 1)
	for range 3 {
		_, err := bound.intercept(c.ctx, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b")},
			nil, func(context.Context, any) (any, error) { return nil, errors.New("away") })
		require.ErrorContains(t, err, "away")
	}
	require.NoError(t, c.list(0, false))
	require.Zero(t, bound.Stats().Open)
}

// Only lists are put off.
func TestListBoundPassesOthers(t *testing.T) {
	bound := NewListBound(1)
	c := newCaller(bound, 1)
	require.NoError(t, c.list(0, true))
	requirePostponed(t, newCaller(bound, 2).list(0, true))
	for _, req := range []any{&pb.RangeRequest{Key: []byte("a")}, &pb.PutRequest{}, &pb.TxnRequest{}, &pb.LeaseGrantRequest{}} {
		_, err := bound.intercept(c.ctx, req, nil, func(context.Context, any) (any, error) { return nil, nil })
		require.NoError(t, err, "%T", req)
	}
}

// Those who are put off come back spread over the time that all of them take; who is
// put off again is still counted once.
func TestListBoundSpreadsTurns(t *testing.T) {
	const limit, callers = 4, 400
	bound := NewListBound(limit)
	now := time.Now()
	bound.now = func() time.Time { return now }
	for range limit {
		require.NoError(t, newCaller(bound, 1).list(0, true))
	}
	each := firstGuess / limit
	for round := range 3 {
		var sum time.Duration
		for i := range callers {
			delay := requirePostponed(t, newCaller(bound, i+2).list(0, true))
			require.LessOrEqual(t, delay, (callers+1)*each)
			sum += delay
		}
		if round > 0 { // all of them wait
			require.InDelta(t, float64(callers)/2, float64(sum/each)/callers, callers/8)
		}
	}
	require.Len(t, bound.waiting, callers)

	// Who is admitted waits no more, and who never comes back is forgotten.
	for range limit {
		require.NoError(t, newCaller(bound, 1).list(7, false))
	}
	require.NoError(t, newCaller(bound, 2).list(0, false))
	require.Len(t, bound.waiting, callers-1)
	for i := range limit {
		require.NoError(t, newCaller(bound, i+2).list(0, true))
	}
	now = now.Add(3 * maxPostponement)
	for i := range limit {
		_ = newCaller(bound, i+2).list(7, true) // they go on
	}
	requirePostponed(t, newCaller(bound, 1).list(0, true))
	require.Len(t, bound.waiting, 1)
}

// An error that only looks like one isn't a postponement: a message that is too
// large, or an etcd without space.
func TestPostponement(t *testing.T) {
	for _, err := range []error{nil, errors.New("x"), status.Error(codes.ResourceExhausted, "too large"), context.Canceled} {
		_, ok := postponement(err)
		require.False(t, ok, "%v", err)
	}
	delay, ok := postponement(fmt.Errorf("listing: %w", postpone(4, time.Second)))
	require.True(t, ok)
	require.Equal(t, time.Second, delay)
	delay, _ = postponement(postpone(4, 0))
	require.Equal(t, minPostponement, delay)
	delay, _ = postponement(postpone(4, time.Hour))
	require.Equal(t, maxPostponement, delay)
}

// puttingOff is an etcd of three pages of a key each, which puts off each page twice.
type puttingOff struct {
	pb.KVClient
	asked    []string
	refusals int
}

func (e *puttingOff) Range(_ context.Context, req *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	e.asked = append(e.asked, fmt.Sprintf("%s@%d", req.Key, req.Revision))
	if e.refusals++; e.refusals%3 != 0 {
		return nil, postpone(1, time.Millisecond)
	}
	page := byte(e.refusals / 3)
	return &pb.RangeResponse{
		Header: &pb.ResponseHeader{Revision: 100 + int64(e.refusals)}, Count: 4 - int64(page), More: page < 3,
		Kvs: []*mvccpb.KeyValue{{Key: []byte{'p', '/', 'a' + page - 1}}},
	}, nil
}

// A list that is put off goes on with the page that it wanted, at its revision.
func TestPostponedListGoesOn(t *testing.T) {
	etcd := &puttingOff{}
	client := &Client{kv: etcd, cfg: ClientConfig{Options: DefaultOptions}}
	lists := semaphore.NewWeighted(1)
	reader := NewReader(ReaderConfig{Lists: lists}, nil)
	require.NoError(t, lists.Acquire(t.Context(), 1))
	var keys []string
	l := listing{prefix: "p/", postponed: func(ctx context.Context, first bool, reason error, delay time.Duration) error {
		err := reader.postponed(ctx, first, reason, delay)
		require.ErrorContains(t, reader.LastError(), "try again in")
		require.False(t, lists.TryAcquire(1), "its place among this process's lists is its own again")
		return err
	}}
	require.NoError(t, l.pages(t.Context(), client, func(page *pb.RangeResponse) error {
		keys = append(keys, string(page.Kvs[0].Key))
		return nil
	}))
	require.Equal(t, []string{"p/a", "p/b", "p/c"}, keys)
	require.Equal(t, []string{"p/@0", "p/@0", "p/@0", "p/a\x00@103", "p/a\x00@103", "p/a\x00@103",
		"p/b\x00@103", "p/b\x00@103", "p/b\x00@103"}, etcd.asked)
	require.EqualValues(t, 6, reader.postponements.Load())

	ctx, cancel := context.WithCancel(t.Context())
	l.postponed = func(ctx context.Context, _ bool, reason error, _ time.Duration) error {
		cancel()
		return reader.postponed(ctx, true, reason, time.Hour)
	}
	etcd.refusals = 0
	require.ErrorIs(t, l.pages(ctx, client, nil), context.Canceled)
	require.False(t, lists.TryAcquire(1))
}

// listObserver sees, behind a ListBound, which connections are reading a list, by
// its own account.
type listObserver struct {
	mu    sync.Mutex
	lists map[string]bool
	pages int
	peak  int
}

func (o *listObserver) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	page, ok := req.(*pb.RangeRequest)
	if !ok || len(page.RangeEnd) == 0 {
		return handle(ctx, req)
	}
	from, _ := peer.FromContext(ctx)
	o.mu.Lock()
	o.pages++
	o.lists[from.Addr.String()] = true
	o.peak = max(o.peak, len(o.lists))
	o.mu.Unlock()
	resp, err := handle(ctx, req)
	if err != nil || !resp.(*pb.RangeResponse).More {
		o.mu.Lock()
		delete(o.lists, from.Addr.String())
		o.mu.Unlock()
	}
	return resp, err
}

// TestHerdOfReaders has many readers list at once: never more than the bound are
// at it, all get everything, and none takes being put off for a failure.
func TestHerdOfReaders(t *testing.T) {
	const (
		readers = 50
		limit   = 4
		keys    = 3 * firstPage
	)
	bound, observer := NewListBound(limit), &listObserver{lists: make(map[string]bool)}
	server := startServer(t, ServerConfig{
		GRPC: []grpc.ServerOption{bound.ServerOption(), grpc.ChainUnaryInterceptor(observer.intercept)},
	})
	scope := startWriter(t, clientAt(t, time.Minute, server.URL())).Scope(leased("p/", nil))
	scope.Apply(ops(numbered(keys, "value")))
	require.NoError(t, scope.Barrier(t.Context()))

	opts := DefaultOptions
	opts.PageBytes = 1 << 14 // some hundred keys: many pages

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var group errgroup.Group
	followed := make(chan *Reader, readers)
	for range readers {
		client := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}, Options: opts})
		group.Go(func() error {
			var reader *Reader
			told := 0
			reader = NewReader(ReaderConfig{Log: hivetest.Logger(t), Prefix: "p/"},
				ObserverFunc(func(_ context.Context, batch Batch) {
					told += len(batch.Events)
					if batch.Synced {
						if told != keys {
							t.Errorf("a reader was told of %d keys of %d", told, keys)
						}
						followed <- reader
					}
				}))
			return reader.Run(ctx, client)
		})
	}
	var postponed uint64
	for range readers {
		select {
		case reader := <-followed:
			postponed += reader.postponements.Load()
		case <-ctx.Done():
			t.Fatalf("not all readers have listed: %+v", bound.Stats())
		}
	}
	cancel()
	require.NoError(t, group.Wait())

	stats := bound.Stats()
	require.LessOrEqual(t, observer.peak, limit)
	require.Greater(t, observer.pages, 2*readers, "the lists have one page, which proves little")
	require.Positive(t, postponed, "nobody was put off: the readers weren't a herd")
	require.GreaterOrEqual(t, stats.Postponed, postponed)
	require.Zero(t, stats.Open)
	require.Zero(t, stats.Abandoned)
}
