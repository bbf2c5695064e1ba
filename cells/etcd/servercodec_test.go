// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

//go:build !waggle_no_embedded_etcd

package etcd

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// TestSharedEvents: what is encoded once for several watchers is what each would have been
// told alone.
func TestSharedEvents(t *testing.T) {
	commit := func(revision int64, keys ...string) *pb.WatchResponse {
		r := &pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: revision, RaftTerm: 3}}
		for _, key := range keys {
			r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte("v"), ModRevision: revision}})
		}
		return r
	}
	// toldTo is a response to another watch with its own events of the same key-values.
	toldTo := func(id int64, of *pb.WatchResponse, events ...int) *pb.WatchResponse {
		header := *of.Header
		r := &pb.WatchResponse{Header: &header, WatchId: id}
		for _, i := range events {
			event := *of.Events[i]
			r.Events = append(r.Events, &event)
		}
		return r
	}
	c := newServerCodec()
	first, again := commit(7, "a", "b"), commit(7, "a", "b")
	deleted := toldTo(0, first, 0, 1)
	deleted.Events[1].Type = mvccpb.DELETE
	withPrevious := toldTo(0, first, 0, 1)
	withPrevious.Events[0].PrevKv = &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("before")}
	later := toldTo(0, first, 0, 1)
	later.Header.Revision++
	canceled := toldTo(0, first, 0)
	canceled.Canceled, canceled.CancelReason = true, "enough"
	fragment := toldTo(5, first, 0)
	fragment.Fragment = true

	var shared mem.SliceBuffer
	for _, test := range []struct {
		name     string
		response *pb.WatchResponse
		shares   bool
	}{
		{"the first", first, true},
		{"another watcher", toldTo(0, first, 0, 1), true},
		{"another watch", toldTo(1<<40, first, 0, 1), true},
		{"a negative watch", toldTo(-1, first, 0, 1), true},
		{"a part of the events", toldTo(0, first, 1), false},
		{"in another order", toldTo(0, first, 1, 0), false},
		{"other key-values that look the same", again, false},
		{"a deletion", deleted, false},
		{"with the previous value", withPrevious, false},
		{"later", later, false},
		{"the first, by yet another watcher", toldTo(3, first, 0, 1), true},
		{"canceled", canceled, false},
		{"a fragment", fragment, false},
		{"without a header", &pb.WatchResponse{Events: first.Events}, false},
		{"created", &pb.WatchResponse{Header: first.Header, Created: true, WatchId: 4}, false},
		{"progress", &pb.WatchResponse{Header: first.Header, WatchId: -1}, false},
	} {
		data, err := c.Marshal(test.response)
		require.NoError(t, err, test.name)
		var got pb.WatchResponse
		require.NoError(t, c.Unmarshal(data, &got), test.name)
		require.Equal(t, test.response.String(), got.String(), test.name)
		if shared == nil {
			shared = data[0].(mem.SliceBuffer)
		}
		of, ok := data[0].(mem.SliceBuffer)
		require.Equal(t, test.shares, ok && &of[0] == &shared[0], test.name)
	}

	large := commit(1000, string(make([]byte, maxSharedBytes)))
	for range 2 {
		data, err := c.Marshal(large)
		require.NoError(t, err)
		var got pb.WatchResponse
		require.NoError(t, c.Unmarshal(data, &got))
		require.Equal(t, large.String(), got.String())
	}
	for i := range c.shared.recent {
		require.NotEqual(t, large.Header.Revision, c.shared.recent[i].response.Header.GetRevision(), "it isn't kept")
	}
}

// TestServerCodec: watchers of overlapping prefixes, several of them on one stream, hear the
// same by our codec as by etcd's own, and etcd's count of bytes goes on.
func TestServerCodec(t *testing.T) {
	hear := func(options []grpc.ServerOption) (heard []string) {
		server := startServer(t, ServerConfig{GRPC: options})
		writer := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}}).etcd
		type watcher struct {
			name   string
			events clientv3.WatchChan
			wanted int
		}
		var watchers []watcher
		for client := range 2 {
			c := newTestClient(t, ClientConfig{Endpoints: []string{server.URL()}}).etcd
			for _, of := range []struct {
				prefix string
				wanted int
				option clientv3.OpOption
			}{
				{"p/", 30, clientv3.WithPrefix()}, {"p/", 30, clientv3.WithPrevKV()}, {"p/a", 19, clientv3.WithPrefix()},
				{"p/", 20, clientv3.WithFilterDelete()}, {"p/", 30, clientv3.WithFragment()},
			} {
				watch := c.Watch(t.Context(), of.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify(), of.option)
				require.True(t, (<-watch).Created)
				watchers = append(watchers, watcher{fmt.Sprintf("%d %s %d", client, of.prefix, len(watchers)), watch, of.wanted})
			}
		}
		for i := range 10 {
			_, err := writer.Txn(t.Context()).Then(
				clientv3.OpPut(fmt.Sprint("p/a", i), "value"), clientv3.OpPut(fmt.Sprint("p/b", i), ""), clientv3.OpDelete(fmt.Sprint("p/a", i-1)),
			).Commit()
			require.NoError(t, err)
		}
		_, err := writer.Delete(t.Context(), "p/b9")
		require.NoError(t, err)
		for _, w := range watchers {
			for n := 0; n < w.wanted; {
				response := <-w.events
				require.NoError(t, response.Err())
				for _, e := range response.Events {
					heard = append(heard, fmt.Sprintf("%s: %s %s %q@%d before %v", w.name, e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision, e.PrevKv))
					n++
				}
			}
		}
		return heard
	}
	c := newServerCodec()
	sent, received := testutil.ToFloat64(c.sent), testutil.ToFloat64(c.received)
	ours := hear(nil)
	require.Greater(t, testutil.ToFloat64(c.sent), sent)
	require.Greater(t, testutil.ToFloat64(c.received), received)
	require.Equal(t, hear([]grpc.ServerOption{grpc.ForceServerCodec(etcdCodec{})}), ours)
}
