// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"time"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// changesAtOnce is the most entries of a list that are decoded and then written in
// one transaction. A page of a list has up to 100,000, whose decoded form would
// take more memory than the page; a transaction of this many rows costs hardly
// more for each than one of all (BenchmarkTakeIn).
const changesAtOnce = 8192

// keptChanges is the largest buffer of changes that an observer keeps between
// batches. That of a list is megabytes, once for each of hundreds of clusters,
// and isn't needed again for a long time.
const keptChanges = 256

// observer turns batches of one resource into transactions. Decoding, which is
// the larger part, is done before the transaction: only one can run at a time in
// the process, and the clusters decode beside each other.
type observer[T any] struct {
	handler  *handler
	resource wire.Resource
	codec    codec[T]
	changes  []change[T]
}

// change is an event that was decoded: a new value, a key that is gone, or one whose
// value was refused and takes back what the key said before.
type change[T any] struct {
	key       string
	value     T
	gone      bool
	withdrawn bool
}

// OnBatch implements etcd.Observer. Nearly all that an agent's tables cost is spent
// in it: BenchmarkTakeIn guards a list of endpoints, BenchmarkTakeInChanges what a
// watch brings, BenchmarkTakeInNodes a list of nodes. It ignores the end of the context: the
// Reader will never deliver this batch again.
func (o *observer[T]) OnBatch(_ context.Context, batch etcd.Batch) {
	for rest := batch.Events; batch.Listing && len(rest) > changesAtOnce; {
		part := batch
		part.Events, part.Synced, rest = rest[:changesAtOnce], false, rest[changesAtOnce:]
		o.take(part)
		batch.Events = rest
	}
	o.take(batch)
	if !batch.Listing && cap(o.changes) > keptChanges {
		o.changes = nil
	}
}

// take applies a batch in one transaction.
func (o *observer[T]) take(batch etcd.Batch) {
	o.decode(batch.Events)
	var changes func(*state.Txn)
	if len(o.changes) > 0 {
		changes = o.write
	}
	o.handler.apply(o.resource, batch, changes)
	clear(o.changes)
}

// decode fills changes.
func (o *observer[T]) decode(events []etcd.Event) {
	if o.changes = o.changes[:0]; cap(o.changes) < len(events) {
		o.changes = make([]change[T], 0, len(events))
	}
	for i := range events {
		event := &events[i]
		if event.Deleted {
			o.changes = append(o.changes, change[T]{key: event.Key, gone: true})
			continue
		}
		value, err := o.decodeValue(event.Key, event.Value)
		if err == nil {
			o.changes = append(o.changes, change[T]{key: event.Key, value: value})
			continue
		}
		if refusal := o.handler.refuse(o.resource, event.Key, err); withdraws(refusal) {
			o.changes = append(o.changes, change[T]{key: event.Key, withdrawn: true})
		}
	}
}

func (o *observer[T]) decodeValue(key string, value []byte) (T, error) {
	if err := wire.CheckSize(o.resource, key, value); err != nil {
		var none T
		return none, err
	}
	return o.codec.decode(key, value)
}

// write applies changes in their order.
func (o *observer[T]) write(tx *state.Txn) {
	for i := range o.changes {
		switch c := &o.changes[i]; {
		case c.withdrawn && o.codec.withdraw != nil:
			o.codec.withdraw(tx, c.key)
		case c.withdrawn, c.gone:
			o.codec.remove(tx, c.key)
		default:
			o.codec.upsert(tx, c.value)
		}
	}
}

// apply commits one batch, whose changes are nil if there are none, and keeps
// the status. The Handler is locked, so that identities and endpoints, which
// arrive on two goroutines, see each other's effects.
func (h *handler) apply(resource wire.Resource, batch etcd.Batch, changes func(*state.Txn)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = time.Now()
	if changes != nil {
		tx := h.options.Writer.Begin()
		changes(tx)
		tx.Commit()
	}
	if s := h.streamOf(resource); s != nil && (batch.Position != nil || len(batch.Events) > 0) {
		s.position = batch.Position
	}
	if batch.Synced && resource == wire.Identities {
		h.identitiesComplete()
	}
	if len(batch.Events) > 0 {
		h.status.lastEvent = h.now
	}
	h.statusChanged(batch.Synced)
}

// offerEndpoint applies an endpoint or holds it back.
func (h *handler) offerEndpoint(tx *state.Txn, ep wire.Endpoint) {
	verdict := h.held.offer(&ep, h.now)
	if verdict != takeNow && tx.HasIdentity(ep.Identity) {
		// Its source has deleted it, but it is still here, and this keeps it here.
		h.held.forget(ep.Prefix)
		verdict = takeNow
	}
	switch verdict {
	case takeNow:
		h.upsertEndpoint(tx, ep)
	case takeLate:
		h.status.late++
		h.upsertEndpoint(tx, ep)
	}
}

// upsertEndpoint applies an endpoint and notes whether another cluster has its
// address. The log waits for the end of the transaction.
func (h *handler) upsertEndpoint(tx *state.Txn, ep wire.Endpoint) {
	if tx.UpsertEndpoint(h.origin, state.Owner{}, ep) {
		h.status.conflict = ep.Prefix
	}
}
