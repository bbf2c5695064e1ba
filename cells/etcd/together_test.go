// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
)

// TestGetTogether reads what there is of several keys at one revision, and nothing that
// is too much.
func TestGetTogether(t *testing.T) {
	server, err := StartServer(t.Context(), ServerConfig{Dir: t.TempDir(), ListenURL: "http://127.0.0.1:0"})
	require.NoError(t, err)
	client, err := NewClient(slog.New(slog.DiscardHandler), ClientConfig{Endpoints: []string{server.URL()}})
	require.NoError(t, err)
	defer client.Close()
	for key, value := range map[string]string{"a": "1", "ab": "2", "c": ""} {
		_, err = client.Etcd().Put(t.Context(), key, value)
		require.NoError(t, err)
	}
	read, err := client.getTogether(t.Context(), 1<<20, "c", "missing", "a")
	require.NoError(t, err)
	require.EqualValues(t, 4, read.Header.Revision)
	require.Len(t, read.KVs, 3)
	require.Equal(t, "c", string(read.KVs[0].Key))
	require.Nil(t, read.KVs[1])
	require.Equal(t, "1", string(read.KVs[2].Value))

	var values []string
	for _, looked := range client.Lookup(t.Context(), []string{"c", "a"}, []string{"missing", "a", "c"}) {
		require.NoError(t, looked.Err)
		for _, one := range looked.Values {
			require.EqualValues(t, 4, one.Header.Revision)
			if value := one.Value(); value == nil {
				values = append(values, "nothing")
			} else {
				values = append(values, string(value))
			}
		}
	}
	require.Equal(t, []string{"", "1", "nothing", "1", ""}, values)

	_, err = client.getTogether(t.Context(), 16, "a", "c")
	require.ErrorIs(t, err, ErrBadAnswer)
	require.ErrorContains(t, err, "reading a, c")

	value, err := client.Get(t.Context(), "c")
	require.NoError(t, err)
	require.NotNil(t, value)
	require.Empty(t, value)
	value, err = client.Get(t.Context(), "missing")
	require.NoError(t, err)
	require.Nil(t, value)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = client.getTogether(ctx, 1<<20, "a")
	require.Equal(t, codes.Canceled, CodeOf(err))
	server.Close()
	_, err = client.getTogether(t.Context(), 1<<20, "a") // without a deadline
	require.Equal(t, codes.Unavailable, CodeOf(err))
}

// TestTogether refuses what no etcd answers.
func TestTogether(t *testing.T) {
	response := func(keys ...string) *pb.ResponseOp {
		kvs := make([]*mvccpb.KeyValue, len(keys))
		for i, key := range keys {
			kvs[i] = &mvccpb.KeyValue{Key: []byte(key)}
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Kvs: kvs}}}
	}
	for name, resp := range map[string]*pb.TxnResponse{
		"no header":       {Responses: []*pb.ResponseOp{response("a")}},
		"too few":         {Header: &pb.ResponseHeader{}},
		"too many":        {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{response("a"), response("a")}},
		"another key":     {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{response("b")}},
		"two keys":        {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{response("a", "a")}},
		"nothing":         {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{{}}},
		"something else":  {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponsePut{}}}},
		"no answer at it": {Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{nil}},
	} {
		_, err := together(resp, []string{"a"})
		require.ErrorIs(t, err, ErrBadAnswer, name)
	}
	_, err := together(&pb.TxnResponse{Header: &pb.ResponseHeader{}, Responses: []*pb.ResponseOp{response("a")}}, []string{"a"})
	require.NoError(t, err)
}
