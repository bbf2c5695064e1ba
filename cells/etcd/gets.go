// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// This file encodes and decodes what looks keys up: of the generated code's twelve objects
// for each key, its request and its answer, hardly any is left (BenchmarkGets).

// gets is a pb.TxnRequest that reads keys, each by a range of its own, and does nothing else.
type gets []string

// The numbers of the fields, from etcd's rpc.proto: what is the same in the answer has the
// same there.
const (
	successOfTxn = 2 // a RequestOp for each key
	rangeOfOp    = 1
	keyOfRange   = 1

	headerOfTxn, succeededOfTxn, responseOfTxn = 1, 2, 3
	kvOfRange, moreOfRange, countOfRange       = 2, 3, 4 // its header is 1 as well
)

// sizeOfField is for numbers whose tag is one byte.
func sizeOfField(content int) int { return 1 + protowire.SizeBytes(content) }

func (keys gets) size() (n int) {
	for _, key := range keys {
		n += sizeOfField(sizeOfField(sizeOfField(len(key))))
	}
	return n
}

func (keys gets) append(b []byte) []byte {
	for _, key := range keys {
		read := sizeOfField(len(key))
		b = protowire.AppendTag(b, successOfTxn, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(sizeOfField(read)))
		b = protowire.AppendTag(b, rangeOfOp, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(read))
		b = protowire.AppendTag(b, keyOfRange, protowire.BytesType)
		b = protowire.AppendString(b, key)
	}
	return b
}

// answers is what is read of the pb.TxnResponse to gets.
type answers struct {
	keys gets
	read atRevision
	// bad says that it isn't an answer to them, and why.
	bad error
}

// decode is like decodeRange.
func (a *answers) decode(data []byte) error {
	*a = answers{keys: a.keys}
	if a.shared(data) {
		return nil
	}
	var whole pb.TxnResponse
	if err := whole.Unmarshal(data); err != nil {
		return err
	}
	a.read, a.bad = together(&whole, a.keys)
	return nil
}

// shared is false where data is anything but what etcd sends today as an answer to the keys.
func (a *answers) shared(data []byte) bool {
	a.read = atRevision{KVs: make([]*mvccpb.KeyValue, len(a.keys))}
	kvs, n := make([]mvccpb.KeyValue, len(a.keys)), 0
	ok := fields(data, func(number protowire.Number, content []byte, _ uint64) bool {
		switch {
		case number == headerOfTxn && content != nil:
			return addHeader(&a.read.Header, content)
		case number == responseOfTxn && content != nil:
			if n == len(a.keys) {
				return false
			}
			found, ok := keyValueOfOp(&kvs[n], content)
			if !ok || found && string(kvs[n].Key) != a.keys[n] {
				return false
			}
			if found {
				a.read.KVs[n] = &kvs[n]
			}
			n++
			return true
		}
		return number == succeededOfTxn && content == nil // there was nothing to compare
	})
	return ok && n == len(a.keys) && a.read.Header != nil
}

// keyValueOfOp reads the answer to one operation: what is found, if there is.
func keyValueOfOp(kv *mvccpb.KeyValue, data []byte) (found, ok bool) {
	reads := 0
	ok = fields(data, func(number protowire.Number, read []byte, _ uint64) bool {
		reads++
		return number == rangeOfOp && read != nil && fields(read, func(number protowire.Number, content []byte, _ uint64) bool {
			switch {
			case number == kvOfRange && content != nil:
				if found {
					return false
				}
				found = true
				return sharedKeyValue(kv, content)
			case number == headerOfTxn && content != nil:
				var header pb.ResponseHeader
				return header.Unmarshal(content) == nil
			}
			return (number == moreOfRange || number == countOfRange) && content == nil
		})
	})
	return found, ok && reads == 1
}
