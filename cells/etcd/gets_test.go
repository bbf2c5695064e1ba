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
)

func keysOf(n int) (keys gets) {
	for i := range n {
		keys = append(keys, fmt.Sprintf("cilium/state/ondemand/ip/v1/default/10.0.%d.%d", i/256, i%256))
	}
	return keys
}

// request is what the generated code sends for the keys.
func (keys gets) request() *pb.TxnRequest {
	req := &pb.TxnRequest{}
	for _, key := range keys {
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}})
	}
	return req
}

// response is an answer to the keys, of which every seventh isn't there.
func (keys gets) response(valueBytes int) []byte {
	header := &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 3, RaftTerm: 4}
	response := &pb.TxnResponse{Header: header, Succeeded: true}
	for i, key := range keys {
		found := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 3}}
		if i%7 != 6 {
			found.Count, found.Kvs = 1, []*mvccpb.KeyValue{{Key: []byte(key), Value: []byte(strings.Repeat("v", valueBytes)), CreateRevision: 1, ModRevision: 2, Version: 3, Lease: 4711}}
		}
		response.Responses = append(response.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: found}})
	}
	data, err := response.Marshal()
	if err != nil {
		panic(err)
	}
	return data
}

// TestGets: the request is that of the generated code, byte for byte, and what etcd answers
// today is read without it, however large.
func TestGets(t *testing.T) {
	for _, keys := range []gets{{"a", strings.Repeat("b", 127), strings.Repeat("c", 20_000)}, keysOf(128)} {
		want, err := keys.request().Marshal()
		require.NoError(t, err)
		require.Len(t, want, keys.size())
		got, err := newCodec().Marshal(keys)
		require.NoError(t, err)
		require.Equal(t, want, got.Materialize())
	}
	for _, valueBytes := range []int{0, 200, 64 << 10} {
		require.True(t, (&answers{keys: keysOf(20)}).shared(keysOf(20).response(valueBytes)))
	}
}

// FuzzGets has our decoder and the generated one agree on anything, of any number of keys.
func FuzzGets(f *testing.F) {
	twice := (&pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Count: 1}}})
	raw, err := twice.Marshal()
	require.NoError(f, err)
	f.Add(1, append(append([]byte{0x0a, 0, 0x1a, byte(2 * len(raw))}, raw...), raw...))
	f.Add(0, []byte(nil))
	f.Add(1, []byte{0x0a, 0, 0x1a, 0}) // an operation without an answer
	f.Add(2, keysOf(1).response(3))
	f.Add(1, keysOf(2).response(3))
	f.Add(8, keysOf(8).response(3))
	f.Add(1, gets{"another"}.response(3))
	f.Add(3, outcomeOf(2))
	f.Fuzz(func(t *testing.T, n int, data []byte) {
		got := answers{keys: keysOf(min(max(n, 0), 200))}
		var whole pb.TxnResponse
		gotErr, wantErr := got.decode(data), whole.Unmarshal(data)
		require.Equal(t, wantErr, gotErr)
		if wantErr != nil {
			return
		}
		want, bad := together(&whole, got.keys)
		require.Equal(t, bad, got.bad)
		if bad == nil {
			require.Equal(t, want, got.read)
		}
	})
}

// BenchmarkGets is what it costs whoever asks to look a key up, of 64 in a request.
func BenchmarkGets(b *testing.B) {
	const n = 64
	keys := keysOf(n)
	data := keys.response(200)
	for name, ask := range map[string]func() error{
		"ours": func() error {
			request, err := newCodec().Marshal(keys)
			if err == nil {
				request.Free()
				err = (&answers{keys: keys}).decode(data)
			}
			return err
		},
		"generated": func() error {
			request, err := newCodec().Marshal(keys.request())
			if err != nil {
				return err
			}
			request.Free()
			var whole pb.TxnResponse
			if err := whole.Unmarshal(data); err != nil {
				return err
			}
			_, err = together(&whole, keys)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) { benchmarkKeys(b, n, ask) })
	}
}
