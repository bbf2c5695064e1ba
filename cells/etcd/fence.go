// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrFenced says that nothing was written since what the Writer's Fence asks for doesn't
// hold: another process may be the one to write.
var ErrFenced = errors.New("this process no longer holds the lock under which it writes")

// Fence is what has to hold in the etcd for a Writer to change anything there: that a
// lock is held by this process. Who has lost it may not know yet, because it was cut off
// or stopped for a while; etcd does, and takes nothing from it.
type Fence struct{ held atomic.Pointer[pb.Compare] }

// Hold sets the comparison, as concurrency.Mutex.IsOwner gives it. Before, nothing is
// written.
func (f *Fence) Hold(owner clientv3.Cmp) { f.held.Store((*pb.Compare)(&owner)) }

// compare adds the fence to what a transaction compares.
func (f *Fence) compare(compares []*pb.Compare) ([]*pb.Compare, error) {
	if f == nil {
		return compares, nil
	}
	held := f.held.Load()
	if held == nil {
		return nil, ErrFenced
	}
	return append(compares, held), nil
}

// fenced finds out whether it was the fence that kept a transaction from being made.
func (w *Writer) fenced(ctx context.Context) error {
	if w.options.Fence == nil {
		return nil
	}
	compare, err := w.options.Fence.compare(nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	switch resp, err := w.client.txn(ctx, &pb.TxnRequest{Compare: compare}); {
	case err != nil:
		return err
	case !resp.Succeeded:
		return ErrFenced
	}
	return nil
}

// deleteRange deletes everything below a prefix, if the fence holds.
func (w *Writer) deleteRange(ctx context.Context, prefix string) error {
	compare, err := w.options.Fence.compare(nil)
	if err != nil {
		return err
	}
	resp, err := w.client.txn(ctx, &pb.TxnRequest{Compare: compare, Success: []*pb.RequestOp{{
		Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{
			Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix))}},
	}}})
	if err == nil && !resp.Succeeded {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("deleting %q: %w", prefix, err)
	}
	return nil
}
