// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package etcd is the engine between Waggle and etcd: it knows keys, bytes,
// revisions and leases, and nothing of what they mean.
//
//	types.go       the contract: what goes in and comes out
//	config.go      flags and upstream's etcd configuration file
//	client.go      a connection, and whether it is still to the same etcd; existing.go asks for a few keys
//	reader.go      list, watch, resume, relist; diff.go is its pure part, what it remembers
//	outage.go      what of an etcd's absence is news to a log
//	resume.go      to go on where a Reader of an earlier process was
//	watchgroup.go  one watch for several Readers
//	keymap.go      how Readers and Scopes remember keys
//	codec.go       how messages are encoded; decode.go reads large ones
//	list.go        a prefix at one revision, in pages bounded by bytes
//	listbound.go   how many lists a server serves at once; postpone.go is what it says to the others
//	writer.go      group commit; plan.go and pace.go are its pure parts
//	answers.go     whether etcd answers, where nothing is written
//	stats.go       what a Writer and its Scopes have done, and are yet to do
//	scope.go       one prefix of a Writer: warm start, passes, completion, canary
//	scope_ops.go   a Scope's part of the plan
//	lease.go       a pool of leases, kept alive and adopted
//	lost.go        what happens when etcd loses keys
//	guard.go       no canary where its keys aren't; fence.go is for nothing to be written by who has lost a lock
//	embed.go       an embedded server; servercell.go runs one in a hive
//
// A Reader turns one prefix into batches of events and hides compaction,
// disconnection and a change of etcd: what comes out is always the difference
// to what came out before. Where all of it goes into a Scope, which knows the same
// keys, the Reader need not know them as well (ReaderConfig.Passthrough). A Writer turns operations into as few commits as
// the load allows, and gives each prefix it owns a Scope.
package etcd

import (
	"context"
	"errors"
)

// Event is one change of one key.
type Event struct {
	// Key is the key below the prefix that is read, without a leading slash.
	Key string
	// Value is the new value. It isn't modified afterwards, so that an Observer
	// may keep it; one that comes from a list keeps all of its page in memory.
	// Meaningless for a deletion.
	Value []byte
	// Deleted is set when the key is gone.
	Deleted bool
	// New is set when the key wasn't there before.
	New bool
}

// Batch is what one watch response or one page of a list held. A key occurs in
// a batch at most once per state it went through, in order.
type Batch struct {
	Events []Event
	// Synced is set once the source is known to be complete and everything up
	// to that point was delivered, this batch included. It is set again after
	// each resynchronisation.
	Synced bool
	// Listing is set for the pages of a list. A list waits for its Observer, so
	// that there it may wait in turn for whatever it feeds; a watch does not.
	Listing bool
	// First is set for the first page of a list by a Reader whose Observer keeps
	// the state itself (see ReaderConfig.Passthrough). It may be empty.
	First bool
	// Resent is, for a batch that is Synced, how many calls of Resend it covers:
	// what they asked for was delivered.
	Resent uint64
	// Position is how far this batch goes: who has applied all batches up to it has
	// what the etcd had there, no more and no less. It is nil in the course of a
	// list and before the source is complete, and where ReaderConfig.Progress isn't
	// set. A batch may have nothing else.
	Position *Position
}

// Observer receives what a Reader reads. Calls come from the Reader's one
// goroutine, in order; a slow Observer slows the Reader, and nothing is lost.
// The slice of events is reused after the call.
type Observer interface {
	OnBatch(ctx context.Context, batch Batch)
}

// ObserverFunc is a function as an Observer.
type ObserverFunc func(ctx context.Context, batch Batch)

// OnBatch calls f.
func (f ObserverFunc) OnBatch(ctx context.Context, batch Batch) { f(ctx, batch) }

// Op is one wanted change of one key of a Scope: a put, or a delete.
type Op struct {
	// Key is below the Scope's prefix, without a leading slash.
	Key string
	// Value is not modified and not kept beyond its commit.
	Value  []byte
	Delete bool
	// First queues it before all that is queued, and an operation that is queued on
	// the key with it: what is applied next may need it. While commits overlap that
	// says nothing of which ends first.
	First bool
}

// ErrOtherEtcd says that the etcd behind an address isn't the one it was: it
// has another cluster ID, or is behind what it had confirmed before.
var ErrOtherEtcd = errors.New("another etcd answers at this address")

// ErrClosed is returned by operations on a closed Client.
var ErrClosed = errors.New("etcd client is closed")

// The Reader's contract (reader.go):
//
//	NewReader(ReaderConfig{Log, Prefix, Canary, Passthrough, …}, observer) *Reader
//	r.Run(ctx, client) error   reads until ctx ends (nil) or the client is closed or bad (error);
//	                           may be called again with another client: it resumes where that
//	                           etcd still has the revision, else relists and emits the difference
//	r.Drain(ctx)               emits a deletion of everything known; not while Run runs
//	r.Resend(keys) uint64      emits these keys again at the next relist, which it triggers; nil is all;
//	                           gives the number of this call, for Batch.Resent
//	r.Synced() bool, r.Lists() uint64, r.LastError() error
//	r.Seed(position), r.Remember(key, value)   before the first Run: where an earlier Reader was, and what it had told
//	r.Start() Start                            whether that was of use
//
// Canary is the key whose presence says that the source is complete; empty
// means that a list is complete by itself. Deletions found by a relist are held
// back until then.
//
// The Writer's contract (writer.go, scope.go):
//
//	NewWriter(log, client) *Writer
//	w.Run(ctx) error                           commits until ctx ends
//	w.Admit(ctx) error                         waits while much is pending
//	s := w.Scope(ScopeConfig{Prefix, Canary, CanaryValue, Lease, Refill, OnComplete})
//	s.Load(ctx) error                          learns what the prefix holds, adopts its leases
//	w.LoadScopes(ctx, scopes…) error           the same of several Scopes, in one request where they are small
//	s.Apply(ops []Op)                          queues, coalescing by key; never blocks on etcd; no-ops are dropped
//	s.BeginPass()                              all that belongs is about to be applied once more
//	s.Restart()                                the same, of another source: what is queued is forgotten
//	s.Complete()                               all that belongs was applied: delete what there was, when the
//	                                           pass began or as Load found it, beyond it; then write the canary
//	s.CompleteAfter(refills) bool              the same, unless Refill was called, or is to be, more often
//	s.Barrier(ctx) error                       waits until all that was applied is committed
//	s.Await(done), s.AwaitKey(key, done) bool  the same by a call, of everything or of one key; false: it is already
//	s.Clear()                                  queues a deletion of every key; the canary stays
//	s.Drop(ctx) error                          deletes every key of the prefix, and the canary
//	s.Len() int                                keys that are known to be in etcd
//	s.Held() int, s.Holds(key) bool            those, once all that was applied is committed
//
// Values aren't kept after their commit. When etcd loses keys (a lease ran out,
// the data are gone), Refill(keys) asks the Scope's owner to Apply them again
// (nil is all) and then to call Complete again.
