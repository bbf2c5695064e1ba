// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"context"
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// This file keeps a canary from an etcd that hasn't got what the canary speaks of. The
// keys were committed before it was queued; but a commit that is under way while the
// etcd is swapped for an empty one arrives there, and may be the first. So a commit
// with a canary is made only where the last key is found as it was written.

// written is a key as this Writer knows it to be in etcd; the zero value is none.
type written struct {
	key      string
	revision int64 // of its last change
}

// wrote takes note of a commit. The lock is held.
func (w *Writer) wrote(batch []*operation, revision int64) {
	if revision <= w.proof.revision {
		return
	}
	for _, op := range batch {
		switch key := op.scope.cfg.Prefix + op.key; {
		case !op.delete:
			w.proof = written{key, revision}
			return
		case key == w.proof.key:
			w.proof = written{}
		}
	}
}

// saw takes note of keys that were read before anything was written, and of the etcd
// that has them: one that is swapped before the first commit is another one as well. The
// lock is held.
func (w *Writer) saw(header *pb.ResponseHeader, kvs []*mvccpb.KeyValue) {
	if w.etcd.clusterID == 0 || w.etcd.clusterID == header.ClusterId {
		w.etcd.clusterID = header.ClusterId
		w.etcd.revision = max(w.etcd.revision, header.Revision)
	}
	if len(kvs) == 0 {
		return
	}
	last := slices.MaxFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	if last.ModRevision > w.proof.revision {
		w.proof = written{string(last.Key), last.ModRevision}
	}
}

// guard gives what has to hold for a commit of these operations: nothing, unless there
// is a canary among them. The lock is held.
func (w *Writer) guard(batch []*operation) []*pb.Compare {
	if w.proof.key == "" {
		return nil
	}
	for _, op := range batch {
		if op.scope == w.canaries && !op.delete {
			return []*pb.Compare{{
				Key: []byte(w.proof.key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: w.proof.revision},
			}}
		}
	}
	return nil
}

// disproved is called for a commit that wasn't made, since the etcd hasn't got the key
// as it was written. If nothing is found to be lost, somebody else has changed that
// key, and it proves nothing any more.
func (w *Writer) disproved(ctx context.Context, batch []*operation) {
	w.mu.Lock()
	proof := w.proof
	w.mu.Unlock()
	if w.check(ctx) {
		w.mu.Lock()
		if w.proof == proof {
			w.proof = written{}
		}
		w.mu.Unlock()
	}
	w.failed(batch, nil)
}

// errPremature says that keys were lost while a commit with their canary was made.
var errPremature = errors.New("a canary has to wait for its keys")

// premature says whether an operation would write the canary of a Scope that has lost
// keys since it was queued: its owner is asked for them, and then completes it again.
func (w *Writer) premature(op *operation) bool {
	if op.scope != w.canaries || op.delete {
		return false
	}
	owner := w.canaryOf[op.key]
	return op.stale || owner != nil && owner.incomplete
}

// withdrawCanaries takes back those that are premature, and marks those that are under
// way. The lock is held.
func (w *Writer) withdrawCanaries() {
	for _, last := range w.canaries.ops {
		for op, older := last, last.under; op != nil; op, older = older, nil {
			switch {
			case !w.premature(op):
			case op.phase == flying:
				op.stale = true
			case op.phase == pending:
				w.plan.unqueue(op)
				w.plan.end(op)
			default:
				delete(w.plan.parked, op)
				w.plan.end(op)
			}
		}
	}
}

// giveUp ends the commit of a canary that is premature. Its Scope may have been
// completed again by now, which counted on it. The lock is held.
func (w *Writer) giveUp(op *operation) {
	w.plan.abandon(op)
	w.canaryAgain(op.key)
}

func (w *Writer) canaryAgain(key string) {
	if owner := w.canaryOf[key]; owner != nil && !owner.incomplete {
		owner.canaryAfterKeys()
	}
}
