// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
)

// txnOf is a commit as a Writer makes it.
func txnOf(puts int) *pb.TxnRequest {
	req := &pb.TxnRequest{}
	for i := range puts {
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
			Key: fmt.Appendf(nil, "cilium/cache/ip/v1/cluster/10.0.%d.%d", i/256, i%256), Value: []byte(strings.Repeat("v", 190)), Lease: 4711,
		}}})
	}
	return req
}

// TestCodecAsGRPCs compares with gRPC's own codec, in both directions.
func TestCodecAsGRPCs(t *testing.T) {
	ours, theirs := newCodec(), encoding.GetCodecV2(proto.Name)
	require.Equal(t, theirs.Name(), ours.Name())
	for _, tc := range []struct{ in, out any }{
		{&pb.RangeRequest{}, &pb.RangeRequest{Key: []byte("left over")}},
		{&pb.RangeRequest{Key: []byte("k"), Limit: 5}, &pb.RangeRequest{}},
		{&pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1}, Kvs: []*mvccpb.KeyValue{{Key: []byte("k"), Value: []byte("v")}}}, &pb.RangeResponse{}},
		{txnOf(1), &pb.TxnRequest{}},
		{txnOf(1000), &pb.TxnRequest{}},
		{txnOf(30_000), &pb.TxnRequest{}}, // beyond the pools
		{&grpc_health_v1.HealthCheckRequest{Service: "not etcd's"}, &grpc_health_v1.HealthCheckRequest{}},
	} {
		want, err := theirs.Marshal(tc.in)
		require.NoError(t, err)
		got, err := ours.Marshal(tc.in)
		require.NoError(t, err)
		require.Equal(t, want.Materialize(), got.Materialize())

		require.NoError(t, ours.Unmarshal(got, tc.out))
		decoded, err := theirs.Marshal(tc.out)
		require.NoError(t, err)
		require.Equal(t, want.Materialize(), decoded.Materialize())
	}
	require.Error(t, ours.Unmarshal(mem.BufferSlice{mem.SliceBuffer("\xff\xff")}, &pb.RangeRequest{}))
	_, err := ours.Marshal("no message")
	require.Error(t, err)
}

// TestCodecKeepsNothing decodes, has the buffer used again, and looks whether
// the message is still what it was.
func TestCodecKeepsNothing(t *testing.T) {
	c := newCodec()
	encode := func(value string) mem.BufferSlice {
		data, err := c.Marshal(&pb.PutRequest{Value: []byte(strings.Repeat(value, 2000))})
		require.NoError(t, err)
		return mem.BufferSlice{mem.SliceBuffer(data.Materialize())}
	}
	var first, second pb.PutRequest
	require.NoError(t, c.Unmarshal(encode("a"), &first))
	require.NoError(t, c.Unmarshal(encode("b"), &second))
	require.Equal(t, strings.Repeat("a", 2000), string(first.Value))
}

func BenchmarkCodec(b *testing.B) {
	for name, c := range map[string]encoding.CodecV2{"ours": newCodec(), "grpc": encoding.GetCodecV2(proto.Name)} {
		b.Run(name, func(b *testing.B) {
			req := txnOf(1024)
			b.ReportAllocs()
			for b.Loop() {
				data, err := c.Marshal(req)
				if err != nil {
					b.Fatal(err)
				}
				data.Free()
			}
		})
	}
}
