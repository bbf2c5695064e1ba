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

// pageOf is a page of a list as etcd sends it.
func pageOf(keys int) []byte {
	page := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 3, RaftTerm: 4}, More: true, Count: int64(keys)}
	for i := range keys {
		page.Kvs = append(page.Kvs, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "cilium/state/ip/v1/default/10.0.%d.%d", i/256, i%256),
			Value: []byte(strings.Repeat("v", 190)), CreateRevision: 1, ModRevision: int64(i), Version: 3, Lease: 4711})
	}
	data, err := page.Marshal()
	if err != nil {
		panic(err)
	}
	return data
}

// outcomeOf is what etcd answers to a transaction of each kind of operation.
func outcomeOf(puts int) []byte {
	header := &pb.ResponseHeader{ClusterId: 1, Revision: 5}
	response := &pb.TxnResponse{Header: header, Succeeded: true}
	for range puts {
		response.Responses = append(response.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: header}}})
	}
	var page pb.RangeResponse
	if err := page.Unmarshal(pageOf(2)); err != nil {
		panic(err)
	}
	response.Responses = append(response.Responses,
		&pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &page}},
		&pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: 1}}},
		&pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{}}})
	data, err := response.Marshal()
	if err != nil {
		panic(err)
	}
	return data
}

// FuzzDecode has our decoders and the generated ones agree on anything.
func FuzzDecode(f *testing.F) {
	for _, seed := range [][]byte{nil, pageOf(0), pageOf(3), outcomeOf(0), outcomeOf(2),
		{0x12, 0x02, 0x0a, 0x00}, // an empty key
		{0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02}, // a number of more than 64 bits
		{0x12, 0x00, 0x12, 0x04, 0x2a, 0x01, 'x', 0x7a},                    // cut off
		{0x2a, 0x01, 'x'}, // a field of the future
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, want pb.RangeResponse
		gotErr, wantErr := decodeRange(&got, data), want.Unmarshal(data)
		require.Equal(t, wantErr, gotErr)
		if wantErr == nil {
			require.Equal(t, &want, &got)
		}
		var outcome outcome
		var whole pb.TxnResponse
		gotErr, wantErr = outcome.decode(data), whole.Unmarshal(data)
		if wantErr != nil {
			return // what isn't looked into may be anything
		}
		require.NoError(t, gotErr)
		require.Equal(t, whole.Header, outcome.Header)
		var ranges []*pb.RangeResponse
		for _, op := range whole.Responses {
			if read := op.GetResponseRange(); read != nil {
				ranges = append(ranges, read)
			}
		}
		require.Equal(t, ranges, outcome.Ranges)
	})
}

// TestDecodeIsTaken has what etcd sends today decoded without the generated code.
func TestDecodeIsTaken(t *testing.T) {
	require.True(t, sharedRange(&pb.RangeResponse{}, pageOf(3)))
	require.True(t, new(outcome).shared(outcomeOf(3)))
}

// BenchmarkDecode is the cost of one key of a page, and of the answer to one put.
func BenchmarkDecode(b *testing.B) {
	const n = 10_000
	page, answer := pageOf(n), outcomeOf(n)
	for name, decode := range map[string]func() error{
		"page/ours":        func() error { return decodeRange(&pb.RangeResponse{}, page) },
		"page/generated":   func() error { return new(pb.RangeResponse).Unmarshal(page) },
		"answer/ours":      func() error { return new(outcome).decode(answer) },
		"answer/generated": func() error { return new(pb.TxnResponse).Unmarshal(answer) },
	} {
		b.Run(name, func(b *testing.B) { benchmarkKeys(b, n, decode) })
	}
}

// benchmarkKeys measures what does something for n keys.
func benchmarkKeys(b *testing.B, n int, do func() error) {
	b.ReportAllocs()
	for b.Loop() {
		if err := do(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
}
