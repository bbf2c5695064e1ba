// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/cespare/xxhash/v2"
)

// ScopeConfig says what a Scope is.
type ScopeConfig struct {
	// Prefix ends in a slash; all keys below it are the Scope's, and only its.
	Prefix string
	// Canary is the key that is written once all that belongs to the Scope is
	// in etcd; empty is none.
	Canary string
	// CanaryValue is its value, asked for when it is written.
	CanaryValue func() []byte
	// OnComplete is called, from the Writer's Run, each time that all that was
	// applied before a Complete is in etcd, canary included. It must not block.
	OnComplete func()
	// Lease puts the keys on leases, so that they vanish when nobody keeps them.
	Lease bool
	// Refill is called, from the Writer's Run, when etcd has lost keys: the owner
	// is to Apply them again (nil: everything) and then to call Complete, or
	// CompleteAfter where it might have been about to call Complete for another
	// reason. It must not block.
	Refill func(keys []string)
}

// Scope is one prefix that a Writer owns. Its methods are safe for concurrent
// use; operations on one key take effect in the order of their Apply calls.
type Scope struct {
	w   *Writer
	cfg ScopeConfig

	// Guarded by w.mu.
	records map[string]record
	// loaded: all of the prefix is this Scope's, and was read.
	loaded   bool
	dropping bool
	// incomplete: keys were lost or dropped, and the owner hasn't called Complete
	// since. An earlier Complete then means nothing any more.
	incomplete bool
	// refills counts the calls of Refill, those included that are still to come.
	refills uint64
}

// record is what is known about a key in etcd; 16 bytes.
type record struct {
	hash  uint64
	lease leaseNumber
	flags recordFlags
}

type recordFlags uint8

const (
	// recordStale: it was found in etcd or lost by it, and not applied since.
	recordStale recordFlags = 1 << iota
	// recordLost: it isn't in etcd as it should be, and must be written even if
	// the value is the same.
	recordLost
)

func (r record) lost() bool { return r.flags&recordLost != 0 }

// Scope makes a Scope. Two Scopes of a Writer must not own the same keys. A prefix
// may hold another's only if it is never loaded, completed or dropped as a whole:
// so do those of the heartbeat and of cluster configs, which are single keys.
func (w *Writer) Scope(cfg ScopeConfig) *Scope {
	s := &Scope{w: w, cfg: cfg, records: make(map[string]record)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scopes[s] = struct{}{}
	if cfg.Canary != "" {
		w.canaryOf[cfg.Canary] = s
	}
	return s
}

// Load learns what the prefix holds, and adopts the leases that the keys are
// on: a writer that is restarted then writes only what differs, and keys don't
// vanish when their first writer's leases would have run out. What isn't applied
// before Complete is deleted by it.
func (s *Scope) Load(ctx context.Context) error {
	err := listPages(ctx, s.w.client, s.cfg.Prefix, func(page *pb.RangeResponse) error {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		for _, kv := range page.Kvs {
			key := string(kv.Key[len(s.cfg.Prefix):])
			if _, ok := s.records[key]; !ok {
				s.records[key] = s.w.adopt(kv.Lease, xxhash.Sum64(kv.Value), s.cfg.Lease, recordStale)
			}
		}
		return nil
	})
	if err == nil && s.cfg.Canary != "" {
		var resp *pb.RangeResponse
		if resp, err = s.w.client.get(ctx, pageTimeout, &pb.RangeRequest{Key: []byte(s.cfg.Canary)}); err == nil && len(resp.Kvs) > 0 {
			s.w.mu.Lock()
			s.w.canaries.records[s.cfg.Canary] = s.w.adopt(resp.Kvs[0].Lease, xxhash.Sum64(resp.Kvs[0].Value), true, 0)
			s.w.mu.Unlock()
		}
	}
	if err != nil {
		return fmt.Errorf("loading %q: %w", s.cfg.Prefix, err)
	}
	s.w.mu.Lock()
	s.loaded = true
	s.w.mu.Unlock()
	return nil
}

// LoadKey learns one key of the prefix, for a Scope that shares it with others
// and has only this key.
func (s *Scope) LoadKey(ctx context.Context, key string) error {
	resp, err := s.w.client.get(ctx, pageTimeout, &pb.RangeRequest{Key: []byte(s.cfg.Prefix + key)})
	if err != nil {
		return fmt.Errorf("loading %q: %w", s.cfg.Prefix+key, err)
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if _, ok := s.records[key]; !ok && len(resp.Kvs) > 0 {
		s.records[key] = s.w.adopt(resp.Kvs[0].Lease, xxhash.Sum64(resp.Kvs[0].Value), s.cfg.Lease, recordStale)
	}
	return nil
}

// Restart has the next Complete delete what isn't applied from now on, as after
// Load, and forgets what is queued: the owner starts over with another source.
func (s *Scope) Restart() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.discard()
	for key, committed := range s.records {
		committed.flags |= recordStale
		s.records[key] = committed
	}
	for t, op := range s.w.plan.inflight {
		if t.scope == s {
			op.stale = true
		}
	}
}

// Apply queues operations. It doesn't wait for etcd; see Writer.Admit. What is
// so in etcd already is dropped.
func (s *Scope) Apply(ops []Op) {
	s.w.mu.Lock()
	for _, op := range ops {
		committed, known := s.records[op.Key]
		if known && committed.flags&recordStale != 0 && !op.Delete {
			committed.flags &^= recordStale
			s.records[op.Key] = committed
		}
		s.w.plan.add(target{s, op.Key}, op, committed, known)
	}
	s.w.arrived += len(ops)
	s.w.mu.Unlock()
	s.w.wakeUp()
}

// Complete says that all that belongs to the Scope has been applied: what etcd
// holds beyond that is deleted, and then the canary is written.
func (s *Scope) Complete() {
	s.w.mu.Lock()
	s.completeLocked()
	s.w.mu.Unlock()
	s.w.wakeUp()
}

// CompleteAfter is Complete by an owner that has seen to so many calls of Refill,
// counted from the Scope's making. If etcd has lost keys more often than that, it
// does nothing: what the owner applied may have been taken for granted because
// etcd had it, and the canary would say that it still has. The owner has been
// asked for those keys as well, or is about to be, and comes here again.
func (s *Scope) CompleteAfter(refills uint64) {
	s.w.mu.Lock()
	if refills == s.refills {
		s.completeLocked()
	}
	s.w.mu.Unlock()
	s.w.wakeUp()
}

func (s *Scope) completeLocked() {
	for key, committed := range s.records {
		if committed.flags&recordStale != 0 {
			s.w.plan.add(target{s, key}, Op{Key: key, Delete: true}, committed, true)
		}
	}
	s.incomplete = false
	if !s.w.plan.await(s, s.writeCanary) {
		s.writeCanary()
	}
}

// writeCanary queues the canary unless it is there. The lock is held.
func (s *Scope) writeCanary() {
	if s.incomplete {
		return // the Complete that follows comes here again
	}
	if s.cfg.Canary != "" {
		committed, known := s.w.canaries.records[s.cfg.Canary]
		if !known || committed.lost() {
			op := Op{Key: s.cfg.Canary, Value: s.cfg.CanaryValue()}
			s.w.plan.add(target{s.w.canaries, op.Key}, op, committed, known)
			s.w.plan.awaitKey(target{s.w.canaries, op.Key}, s.completed)
			return
		}
	}
	s.completed()
}

// completed has OnComplete called. The lock is held.
func (s *Scope) completed() {
	if s.cfg.OnComplete != nil {
		s.w.callbacks = append(s.w.callbacks, s.cfg.OnComplete)
		s.w.wakeUp()
	}
}

// Barrier waits until everything applied so far is committed.
func (s *Scope) Barrier(ctx context.Context) error {
	done := make(chan struct{})
	s.w.mu.Lock()
	waits := s.w.plan.await(s, func() { close(done) })
	s.w.mu.Unlock()
	if !waits {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %q to be committed: %w", s.cfg.Prefix, context.Cause(ctx))
	}
}

// Drop deletes every key of the prefix, whoever wrote it, and then the canary,
// and forgets what was queued: as long as the canary is there, there may be
// keys. The Scope can be used again afterwards.
func (s *Scope) Drop(ctx context.Context) error {
	s.w.mu.Lock()
	s.dropping = true // or what is under way and is refused would wait for ever
	s.discard()
	s.w.mu.Unlock()
	defer func() {
		s.w.mu.Lock()
		s.dropping = false
		s.w.mu.Unlock()
	}()
	if err := s.Barrier(ctx); err != nil { // what is under way
		return err
	}
	if err := s.w.deletePrefix(ctx, s.cfg.Prefix); err != nil {
		return err
	}
	s.w.mu.Lock()
	for _, committed := range s.records {
		s.w.leases.drop(committed.lease)
	}
	s.records = make(map[string]record)
	s.w.mu.Unlock()
	if s.cfg.Canary == "" {
		return nil
	}
	return s.w.dropCanary(ctx, s.cfg.Canary)
}

// discard forgets what is queued. A Complete that waited for it doesn't come
// about, which is what its canary would say. The lock is held.
func (s *Scope) discard() {
	s.incomplete = true
	s.w.plan.discard(s)
	s.w.ease()
}

// dropCanary deletes one canary and waits for that, not for those of others.
func (w *Writer) dropCanary(ctx context.Context, key string) error {
	gone := make(chan struct{})
	w.mu.Lock()
	committed, known := w.canaries.records[key]
	t := target{w.canaries, key}
	w.plan.add(t, Op{Key: key, Delete: true}, committed, known)
	if !w.plan.awaitKey(t, func() { close(gone) }) {
		close(gone)
	}
	w.mu.Unlock()
	w.wakeUp()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("deleting canary %q: %w", key, context.Cause(ctx))
	}
}

// Close drops nothing in etcd: it takes the Scope out of the Writer.
func (s *Scope) Close() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.discard()
	for _, committed := range s.records {
		s.w.leases.drop(committed.lease)
	}
	delete(s.w.scopes, s)
	delete(s.w.canaryOf, s.cfg.Canary)
}

// Len is the number of keys that are known to be in etcd.
func (s *Scope) Len() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return len(s.records)
}
