// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
)

// This file decodes the messages of which a process reads hundreds of
// thousands of keys. The generated code makes three objects of each key of a
// page, and four of the answer to each operation of a commit, of which nothing is
// looked at. What isn't as expected is left to the generated code, so that the
// outcome is the same; FuzzDecode compares the two, BenchmarkDecode what they cost.

// decodeRange decodes a response whose keys and values are parts of data, which
// nobody else may use: all of it stays in memory as long as one of them does.
func decodeRange(m *pb.RangeResponse, data []byte) error {
	if sharedRange(m, data) {
		return nil
	}
	m.Reset()
	return m.Unmarshal(data)
}

// sharedRange is false where data is anything but what etcd sends today.
func sharedRange(m *pb.RangeResponse, data []byte) bool {
	keys := 0
	for rest := data; len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return false
		}
		if number == 2 {
			keys++
		}
		rest = rest[n:]
	}
	kvs := make([]mvccpb.KeyValue, keys)
	if keys > 0 {
		m.Kvs = make([]*mvccpb.KeyValue, 0, keys)
	}
	return fields(data, func(number protowire.Number, content []byte, value uint64) bool {
		switch {
		case number == 1 && content != nil:
			return addHeader(&m.Header, content)
		case number == 2 && content != nil:
			kv := &kvs[len(m.Kvs)]
			m.Kvs = append(m.Kvs, kv)
			return sharedKeyValue(kv, content)
		case number == 3 && content == nil:
			m.More = value != 0
		case number == 4 && content == nil:
			m.Count = int64(value)
		default:
			return false
		}
		return true
	})
}

// addHeader decodes a header, one on top of the other if there are several.
func addHeader(h **pb.ResponseHeader, content []byte) bool {
	if *h == nil {
		*h = &pb.ResponseHeader{}
	}
	return (*h).Unmarshal(content) == nil
}

// sharedKeyValue goes by the tags of mvccpb.KeyValue, number and type in a byte.
func sharedKeyValue(kv *mvccpb.KeyValue, data []byte) bool {
	for len(data) > 0 {
		tag := data[0]
		value, n := protowire.ConsumeVarint(data[1:])
		if n < 0 {
			return false
		}
		data = data[1+n:]
		switch tag {
		case 2<<3 | uint8(protowire.VarintType):
			kv.CreateRevision = int64(value)
			continue
		case 3<<3 | uint8(protowire.VarintType):
			kv.ModRevision = int64(value)
			continue
		case 4<<3 | uint8(protowire.VarintType):
			kv.Version = int64(value)
			continue
		case 6<<3 | uint8(protowire.VarintType):
			kv.Lease = int64(value)
			continue
		}
		if value > uint64(len(data)) {
			return false
		}
		content := data[:value:value]
		switch tag {
		case 1<<3 | uint8(protowire.BytesType):
			kv.Key = content
		case 5<<3 | uint8(protowire.BytesType):
			kv.Value = content
		default:
			return false
		}
		data = data[value:]
	}
	return true
}

// fields goes through the fields of a message: numbers, for which content is nil,
// and what has a length, for which it isn't, even if that is 0. It is false where
// there are others, or take is.
func fields(data []byte, take func(number protowire.Number, content []byte, value uint64) bool) bool {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return false
		}
		var (
			content []byte
			value   uint64
		)
		data = data[n:]
		switch kind {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			if content, n = protowire.ConsumeBytes(data); n >= 0 {
				content = content[:len(content):len(content)]
			}
		default:
			return false
		}
		if n < 0 || !take(number, content, value) {
			return false
		}
		data = data[n:]
	}
	return true
}

// outcome is what is read of a pb.TxnResponse.
type outcome struct {
	Header *pb.ResponseHeader
	// Succeeded says whether the comparisons held.
	Succeeded bool
	// Ranges are the answers to the reads among the operations, in order.
	Ranges []*pb.RangeResponse
}

// decode is like decodeRange.
func (o *outcome) decode(data []byte) error {
	*o = outcome{}
	if o.shared(data) {
		return nil
	}
	var whole pb.TxnResponse
	if err := whole.Unmarshal(data); err != nil {
		return err
	}
	*o = outcome{Header: whole.Header, Succeeded: whole.Succeeded}
	for _, op := range whole.Responses {
		if read := op.GetResponseRange(); read != nil {
			o.Ranges = append(o.Ranges, read)
		}
	}
	return nil
}

func (o *outcome) shared(data []byte) bool {
	return fields(data, func(number protowire.Number, content []byte, value uint64) bool {
		switch {
		case number == 1 && content != nil:
			return addHeader(&o.Header, content)
		case number == 2 && content == nil:
			o.Succeeded = value != 0
			return true
		case number == 3 && content != nil:
			return o.operation(content)
		}
		return false
	})
}

// operation takes the answer to one operation. Those to writes aren't looked into.
func (o *outcome) operation(data []byte) bool {
	number, kind, n := protowire.ConsumeTag(data)
	if n < 0 || kind != protowire.BytesType {
		return false
	}
	content, length := protowire.ConsumeBytes(data[n:])
	if length < 0 || n+length != len(data) {
		return false
	}
	switch number {
	case 1:
		read := &pb.RangeResponse{}
		o.Ranges = append(o.Ranges, read)
		return sharedRange(read, content[:len(content):len(content)])
	case 2, 3: // a put, a deletion
		return true
	}
	return false
}

// txnMethod is gRPC's name of the call, from etcd's rpc.proto.
const txnMethod = "/etcdserverpb.KV/Txn"

// txn makes a transaction. Errors are etcd's (rpctypes).
func (c *Client) txn(ctx context.Context, req *pb.TxnRequest) (*outcome, error) {
	out := &outcome{}
	if err := c.etcd.ActiveConnection().Invoke(ctx, txnMethod, req, out); err != nil {
		return nil, rpctypes.Error(err)
	}
	if out.Header == nil {
		return nil, fmt.Errorf("calling %s: the answer has no header", txnMethod)
	}
	return out, nil
}
