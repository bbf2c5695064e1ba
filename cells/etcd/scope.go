// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	// Lease puts the keys on leases, so that they vanish when nobody keeps them; but
	// for those of a Writer that is Permanent.
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
	records *keyMap[record]
	// loaded: all of the prefix is this Scope's, and was read.
	loaded   bool
	dropping bool
	// incomplete: keys were lost or dropped, and the owner hasn't called Complete
	// since. An earlier Complete then means nothing any more.
	incomplete bool
	// wasComplete: all that was applied before a Complete was in etcd once.
	wasComplete bool
	failures    uint64 // operations that failed, each time
	// staleOps: there may be stale operations, see operation.stale.
	staleOps bool
	// refills counts the calls of Refill, those included that are still to come.
	refills uint64
	scopeOps
}

// record is what is known about a key in etcd; 16 bytes.
type record struct {
	hash  uint64
	lease leaseNumber
	flags recordFlags
}

type recordFlags uint8

const (
	// recordStale: it was found in etcd or lost by it, or was there when the
	// present pass began, and was not applied since.
	recordStale recordFlags = 1 << iota
	// recordLost: it isn't in etcd as it should be, and must be written even if
	// the value is the same.
	recordLost
)

// record gives what is known of a key. The lock is held.
func (s *Scope) record(key string) (record, bool) {
	if r := s.records.get(key); r != nil {
		return *r, true
	}
	return record{}, false
}

func (r record) lost() bool { return r.flags&recordLost != 0 }

// Scope makes a Scope. Two Scopes of a Writer must not own the same keys. A prefix
// may hold another's only if it is never loaded, completed or dropped as a whole:
// so do those of the heartbeat and of cluster configs, which are single keys.
func (w *Writer) Scope(cfg ScopeConfig) *Scope {
	cfg.Lease = cfg.Lease && !w.options.Permanent
	s := &Scope{w: w, cfg: cfg, records: newKeyMap[record]()}
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
	err := listing{prefix: s.cfg.Prefix}.pages(ctx, s.w.client, func(page *pb.RangeResponse) error {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.learnPage(page)
		return nil
	})
	var canary *pb.RangeResponse
	if err == nil && s.cfg.Canary != "" {
		canary, err = s.w.client.get(ctx, pageTimeout, &pb.RangeRequest{Key: []byte(s.cfg.Canary)})
	}
	if err != nil {
		return fmt.Errorf("loading %q: %w", s.cfg.Prefix, err)
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.learnCanary(canary)
	s.loaded = true
	return nil
}

// LoadScopes is Load of several Scopes in one request, and more only for those
// that have many keys: of hundreds of clusters with several Scopes each, most
// have few or none when a process starts.
func (w *Writer) LoadScopes(ctx context.Context, scopes ...*Scope) error {
	req := &pb.TxnRequest{}
	read := func(r *pb.RangeRequest) {
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}})
	}
	for _, s := range scopes {
		read(&pb.RangeRequest{Key: []byte(s.cfg.Prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(s.cfg.Prefix)), Limit: firstPage})
		if s.cfg.Canary != "" {
			read(&pb.RangeRequest{Key: []byte(s.cfg.Canary)})
		}
	}
	limited, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	resp, err := w.client.txn(limited, req)
	if err == nil && len(resp.Ranges) != len(req.Success) {
		err = fmt.Errorf("%d answers to %d reads", len(resp.Ranges), len(req.Success))
	}
	if err != nil {
		return fmt.Errorf("loading %d prefixes: %w", len(scopes), err)
	}
	answers := resp.Ranges
	for _, s := range scopes {
		page, canary := answers[0], (*pb.RangeResponse)(nil)
		if answers = answers[1:]; s.cfg.Canary != "" {
			canary, answers = answers[0], answers[1:]
		}
		if page.More {
			if err := s.Load(ctx); err != nil {
				return err
			}
			continue
		}
		w.mu.Lock()
		s.learnPage(page)
		s.learnCanary(canary)
		s.loaded = true
		w.mu.Unlock()
	}
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
	if len(resp.Kvs) > 0 {
		s.learn(key, resp.Kvs[0])
	}
	return nil
}

// learnPage takes note of keys below the prefix. The lock is held.
func (s *Scope) learnPage(page *pb.RangeResponse) {
	for _, kv := range page.Kvs {
		s.learn(string(kv.Key[len(s.cfg.Prefix):]), kv)
	}
	s.w.saw(page.Header, page.Kvs)
}

// learnCanary takes note of the canary, if there is one. The lock is held.
func (s *Scope) learnCanary(resp *pb.RangeResponse) {
	if resp == nil || len(resp.Kvs) == 0 {
		return
	}
	canary, _ := s.w.canaries.records.put(s.cfg.Canary)
	*canary = s.w.adopt(resp.Kvs[0].Lease, xxhash.Sum64(resp.Kvs[0].Value), s.w.canaries.cfg.Lease, 0)
}

// learn takes note of a key that was found in etcd, unless it is known. The lock
// is held.
func (s *Scope) learn(key string, kv *mvccpb.KeyValue) {
	r, fresh := s.records.put(key)
	if !fresh {
		return
	}
	op := s.ops[key]
	s.countHeld(op.wants(false), op.wants(true))
	*r = s.w.adopt(kv.Lease, xxhash.Sum64(kv.Value), s.cfg.Lease, recordStale)
}

// BeginPass has the next Complete delete what isn't applied from now on: the owner
// goes through all that belongs to the Scope once more, by Apply. Until then what
// is there stays, and what is queued is written. A pass may be begun again.
//
// Cost: O(keys), as little as the pass that follows.
func (s *Scope) BeginPass() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.beginPassLocked()
}

func (s *Scope) beginPassLocked() {
	for _, committed := range s.records.all() {
		committed.flags |= recordStale
	}
	for _, op := range s.ops {
		op.stale, s.staleOps = true, true
		if op.under != nil {
			op.under.stale = true
		}
	}
}

// Restart is BeginPass for an owner that starts over with another source: it
// also forgets what is queued.
func (s *Scope) Restart() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.discard(false)
	s.beginPassLocked()
}

// Clear deletes all keys that the Scope has or is to have. The canary stays as it
// is, and the Scope can be used again at once.
func (s *Scope) Clear() {
	s.w.mu.Lock()
	for key, committed := range s.records.all() {
		s.w.add(target{s, strings.Clone(key)}, Op{Delete: true}, *committed, true)
	}
	for _, key := range s.puts(func(*operation) bool { return true }) {
		s.deleteLocked(key)
	}
	s.w.mu.Unlock()
	s.w.wakeUp()
}

// puts gives the keys whose last operation is a put that which says yes to.
func (s *Scope) puts(which func(*operation) bool) (keys []string) {
	for key, op := range s.ops {
		if !op.delete && which(op) {
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *Scope) deleteLocked(key string) {
	committed, known := s.record(key)
	s.w.add(target{s, key}, Op{Delete: true}, committed, known)
}

// Apply queues operations. It doesn't wait for etcd; see Writer.Admit. What is
// so in etcd already is dropped.
func (s *Scope) Apply(ops []Op) {
	now := time.Now()
	s.w.mu.Lock()
	s.w.plan.now = now
	for _, op := range ops {
		var committed record
		known := s.records.get(op.Key)
		if known != nil {
			if !op.Delete {
				known.flags &^= recordStale
			}
			committed = *known
		}
		s.w.plan.add(target{s, op.Key}, op, committed, known != nil)
	}
	s.w.arrived += len(ops)
	s.w.mu.Unlock()
	s.w.wakeUp()
}

// add queues one operation now. The lock is held.
func (w *Writer) add(t target, op Op, committed record, known bool) {
	w.plan.now = time.Now()
	w.plan.add(t, op, committed, known)
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
// does nothing, and returns false: what the owner applied may have been taken for
// granted because etcd had it, and the canary would say that it still has. The owner
// has been asked for those keys as well, or is about to be, and comes here again.
func (s *Scope) CompleteAfter(refills uint64) bool {
	s.w.mu.Lock()
	up := refills == s.refills
	if up {
		s.completeLocked()
	}
	s.w.mu.Unlock()
	s.w.wakeUp()
	return up
}

func (s *Scope) completeLocked() {
	for key, committed := range s.records.all() {
		if committed.flags&recordStale != 0 {
			s.w.add(target{s, strings.Clone(key)}, Op{Delete: true}, *committed, true)
		}
	}
	if s.staleOps {
		s.staleOps = false
		// A delete after what is under way, in place of what is pending.
		for _, key := range s.puts(func(op *operation) bool { return op.stale }) {
			s.deleteLocked(key)
		}
	}
	s.incomplete = false
	s.canaryAfterKeys()
}

// canaryAfterKeys has the canary written after what was applied so far. The lock is
// held.
func (s *Scope) canaryAfterKeys() {
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
		committed, known := s.w.canaries.record(s.cfg.Canary)
		if !known || committed.lost() {
			op := Op{Key: s.cfg.Canary, Value: s.cfg.CanaryValue()}
			s.w.add(target{s.w.canaries, op.Key}, op, committed, known)
			s.w.plan.awaitKey(target{s.w.canaries, op.Key}, s.completed)
			return
		}
	}
	s.completed()
}

// completed has OnComplete called, unless it isn't so any more. The lock is held.
func (s *Scope) completed() {
	if s.incomplete || !s.hasCanary() {
		return
	}
	s.wasComplete = true
	if s.cfg.OnComplete != nil {
		s.w.callbacks = append(s.w.callbacks, s.cfg.OnComplete)
		s.w.wakeUp()
	}
}

// hasCanary says whether the canary is in etcd, if there is to be one. The lock is
// held.
func (s *Scope) hasCanary() bool {
	if s.cfg.Canary == "" {
		return true
	}
	canary, known := s.w.canaries.record(s.cfg.Canary)
	return known && !canary.lost()
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

// Await has done called, from the Writer's Run, once everything applied so far is
// committed or has become needless. It returns false, and doesn't call, if it is
// already. It doesn't block, and done must not either.
func (s *Scope) Await(done func()) bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.plan.await(s, s.w.callback(done))
}

// AwaitKey is Await for what is queued or under way on one key. An operation that
// etcd refuses is waited for until it takes it, or a later one on the key. Where an
// order between keys matters, of this Scope or of two, the second operation is
// applied once the first one is done.
func (s *Scope) AwaitKey(key string, done func()) bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.plan.awaitKey(target{s, key}, s.w.callback(done))
}

// callback is done to be called from Run, without the lock that the plan is under.
func (w *Writer) callback(done func()) func() {
	return func() {
		w.callbacks = append(w.callbacks, done)
		w.wakeUp()
	}
}

// Drop deletes every key of the prefix, whoever wrote it, and then the canary,
// and forgets what was queued: as long as the canary is there, there may be
// keys. The Scope can be used again afterwards.
func (s *Scope) Drop(ctx context.Context) error {
	s.w.mu.Lock()
	s.dropping = true // or what is under way and is refused would wait for ever
	s.discard(true)
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
	for _, committed := range s.records.all() {
		s.w.leases.drop(committed.lease)
	}
	s.records = newKeyMap[record]()
	s.held = 0
	for _, op := range s.ops { // applied meanwhile
		s.countHeld(false, !op.delete)
	}
	s.w.mu.Unlock()
	if s.cfg.Canary == "" {
		return nil
	}
	return s.w.dropCanary(ctx, s.cfg.Canary)
}

// discard forgets what is queued (see plan.discard). A Complete that waited for it
// doesn't come about, which is what its canary would say. The lock is held.
func (s *Scope) discard(all bool) {
	s.incomplete = true
	s.w.plan.discard(s, all)
	s.w.ease()
}

// dropCanary deletes one canary and waits for that, not for those of others.
func (w *Writer) dropCanary(ctx context.Context, key string) error {
	gone := make(chan struct{})
	w.mu.Lock()
	committed, known := w.canaries.record(key)
	t := target{w.canaries, key}
	w.add(t, Op{Key: key, Delete: true}, committed, known)
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
	s.discard(true)
	for _, committed := range s.records.all() {
		s.w.leases.drop(committed.lease)
	}
	delete(s.w.scopes, s)
	delete(s.w.canaryOf, s.cfg.Canary)
}

// Held is the number of keys that are in etcd or will be, once all that was
// applied is committed.
func (s *Scope) Held() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.held
}

// Holds says whether a key is one of those that Held counts.
func (s *Scope) Holds(key string) bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	_, known := s.record(key)
	return s.ops[key].wants(known)
}

// Len is the number of keys that are known to be in etcd.
func (s *Scope) Len() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.records.len()
}
