// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrBadAnswer says that an etcd answered something that can't be the answer to what
// it was asked, or more than would be read.
var ErrBadAnswer = errors.New("not an answer to what was asked")

// atRevision is what an etcd has at several keys, all at one revision.
type atRevision struct {
	Header *pb.ResponseHeader
	// KVs are in the order of the keys; nil where there is none.
	KVs []*mvccpb.KeyValue
}

// getTogether reads several keys at one revision and in one round trip, until ctx ends.
// It is linearizable: what was written before is seen. Of an answer of more than
// maxBytes nothing is read: an etcd that can't be trusted can't fill our memory. It fails
// at once while there is no connection.
//
// The error wraps ErrBadAnswer, or is the etcd's, for status.Code or CodeOf.
func (c *Client) getTogether(ctx context.Context, maxBytes int, keys ...string) (atRevision, error) {
	out := &answers{keys: keys}
	err := c.etcd.ActiveConnection().Invoke(ctx, txnMethod, out.keys, out, grpc.MaxCallRecvMsgSize(maxBytes))
	switch {
	case err == nil && out.bad == nil:
		// Not the header itself: whoever keeps it would keep what it has of fields that
		// nobody knows, which the etcd can make large.
		h := out.read.Header
		out.read.Header = &pb.ResponseHeader{ClusterId: h.ClusterId, MemberId: h.MemberId, Revision: h.Revision, RaftTerm: h.RaftTerm}
		return out.read, nil
	case err == nil:
		err = out.bad
	case tooLarge(err):
		err = fmt.Errorf("%w: %w", ErrBadAnswer, err)
	default:
		err = rpctypes.Error(err)
	}
	if len(keys) > 4 {
		return atRevision{}, fmt.Errorf("reading %s and %d other keys: %w", keys[0], len(keys)-1, err)
	}
	return atRevision{}, fmt.Errorf("reading %s: %w", strings.Join(keys, ", "), err)
}

// Lookup reads what each of asks has, along with what others look up at the same time
// (Gather): each ask at one revision, and as getTogether reads. What one of them gets to
// hear for a key of its own is no other's error.
//
// The error of an ask wraps ErrBadAnswer, or is the etcd's or ctx's.
func (c *Client) Lookup(ctx context.Context, asks ...[]string) []Got[Found] {
	return c.lookups.Get(ctx, asks...)
}

// Found is what there is at one key; KV is nil if there is nothing. Its key and value are
// parts of the message that they came by, all of which stays in memory as long as one of them
// does: who keeps them clones them.
type Found struct {
	Header *pb.ResponseHeader
	KV     *mvccpb.KeyValue
}

// Value is the value: nil where there is nothing, and not where it is empty. It isn't
// modified.
func (f Found) Value() []byte {
	switch {
	case f.KV == nil:
		return nil
	case f.KV.Value == nil:
		return []byte{}
	}
	return f.KV.Value
}

const (
	// lookupKeys are those of one transaction: as many as any etcd allows.
	lookupKeys = 128
	// lookupFlights: while one answer is on its way, the next question is.
	lookupFlights = 2
	// lookupTimeout bounds a request which is made for several, of whom each has a
	// deadline of its own.
	lookupTimeout = 2 * time.Second
	// lookupBytes is what is read of an answer for each key, more than an etcd takes by
	// default, so that a value which is too large can be told by its name; and
	// maxLookupBytes of all of them.
	lookupBytes, maxLookupBytes = 2 << 20, 16 << 20
)

// NewLookups is for who wants to wait for fewer others than Lookup has all who use the
// client wait for. Its Get is Lookup.
func (c *Client) NewLookups() *Gather[Found] {
	return newGather(gatherConfig[Found]{
		Flights: lookupFlights, MaxKeys: lookupKeys, Timeout: lookupTimeout,
		Read: func(ctx context.Context, keys []string) ([]Found, error) {
			read, err := c.getTogether(ctx, min(len(keys)*lookupBytes, maxLookupBytes), keys...)
			if err != nil {
				return nil, err
			}
			found := make([]Found, len(keys))
			for i, kv := range read.KVs {
				found[i] = Found{read.Header, kv}
			}
			return found, nil
		},
		// Whoever is away is away for all; what isn't answered, or isn't an answer, may be
		// one key.
		Alone: func(err error) bool {
			switch CodeOf(err) {
			case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
				return false
			}
			return true
		},
	})
}

func together(resp *pb.TxnResponse, keys []string) (atRevision, error) {
	if resp.Header == nil || len(resp.Responses) != len(keys) {
		return atRevision{}, fmt.Errorf("%w: %d answers to %d keys", ErrBadAnswer, len(resp.Responses), len(keys))
	}
	read := atRevision{Header: resp.Header, KVs: make([]*mvccpb.KeyValue, len(keys))}
	for i, one := range resp.Responses {
		found := one.GetResponseRange()
		switch {
		case found == nil || len(found.Kvs) > 1:
			return atRevision{}, fmt.Errorf("%w: it isn't what there is at one key", ErrBadAnswer)
		case len(found.Kvs) == 0:
			continue
		case string(found.Kvs[0].Key) != keys[i]:
			return atRevision{}, fmt.Errorf("%w: it is what there is at %.256q", ErrBadAnswer, found.Kvs[0].Key)
		}
		read.KVs[i] = found.Kvs[0]
	}
	return read, nil
}

// tooLarge tells gRPC's own refusal to read from etcd's errors of the same code.
func tooLarge(err error) bool {
	if status.Code(err) != codes.ResourceExhausted {
		return false
	}
	var known rpctypes.EtcdError
	return !errors.As(rpctypes.Error(err), &known)
}

// CodeOf is the gRPC code of an error of a Client: Unknown where it has none, which is
// one of its own making.
func CodeOf(err error) codes.Code {
	var known rpctypes.EtcdError
	switch {
	case errors.As(err, &known):
		return known.Code()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}
