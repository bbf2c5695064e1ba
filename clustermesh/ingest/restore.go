// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ingest

import (
	"context"
	"fmt"
	"time"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Start is how a resource began that was restored.
type Start struct {
	etcd.Start
	// Restored is how many entries were.
	Restored int
}

// restore takes in entries of an earlier process before the first Run.
func (h *handler) restore(resource wire.Resource, entries []Entry) error {
	s := h.streamOf(resource)
	if s == nil {
		return fmt.Errorf("restoring %s: they have no table", resource)
	}
	h.mu.Lock()
	s.enabled = true // until the source says otherwise: nothing counts as complete before
	h.mu.Unlock()
	s.restored += s.restore(entries)
	return nil
}

// expireRestored waits for as long as an endpoint may be held back, and applies those
// that were restored and still are: without a Run nobody else does. Those of a Run that
// has begun meanwhile have deadlines of their own.
func (h *handler) expireRestored(ctx context.Context) {
	timer := time.NewTimer(h.options.HoldTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		h.tick(time.Now())
	}
}

// restore applies entries in one transaction. It doesn't touch the status, by which
// the start would be over: that waits for the etcd's word.
func (o *observer[T]) restore(reader *etcd.Reader, entries []Entry) (restored int) {
	type row struct {
		value         T
		waits, leaves bool
	}
	rows := make([]row, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		value, err := o.decodeValue(e.Key, e.Value)
		if err != nil {
			// The Reader isn't told of it, so that a list brings it again.
			_ = o.handler.refuse(o.resource, e.Key, err)
			continue
		}
		leaves := e.Waits && o.codec.leaves != nil
		if !leaves { // else the etcd doesn't have it
			reader.Remember(e.Key, e.Value)
		}
		rows = append(rows, row{value: value, waits: e.Waits && !leaves, leaves: leaves})
	}
	apply := o.codec.restore
	if apply == nil {
		apply = o.codec.upsert
	}
	h := o.handler
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = time.Now()
	tx := h.options.Writer.Begin()
	for i := range rows {
		if rows[i].waits {
			o.codec.upsert(tx, rows[i].value)
		} else {
			apply(tx, rows[i].value)
		}
		if rows[i].leaves {
			o.codec.leaves(rows[i].value)
		}
	}
	tx.Commit()
	return len(rows)
}

// releaseRestored removes the identities that were restored although their source no
// longer has them, once the endpoints that use them are there as well: each goes with
// the last of those. It is called with mu held.
func (h *handler) releaseRestored() {
	if len(h.leaving) == 0 {
		return
	}
	tx := h.options.Writer.Begin()
	for _, id := range h.leaving {
		h.held.identityGone(id)
		tx.ReleaseIdentity(h.origin, id)
	}
	tx.Commit()
	h.leaving = nil
}

// resumeAt has the first Run go on from a Position.
func (h *handler) resumeAt(at SavedPosition) error {
	s := h.streamOf(at.Resource)
	if s == nil {
		return fmt.Errorf("resuming %s: they have no table", at.Resource)
	}
	s.reader.Seed(at.Position)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = time.Now()
	s.enabled = true // until the source says otherwise
	if at.Resource == wire.Endpoints {
		h.releaseRestored()
	}
	if at.Position.Revision != 0 {
		s.position = &at.Position
	}
	h.statusChanged(true)
	return nil
}

func (h *handler) streamOf(resource wire.Resource) *stream {
	for _, s := range h.streams {
		if s.resource == resource {
			return s
		}
	}
	return nil
}

func (h *handler) starts() map[wire.Resource]Start {
	h.mu.Lock()
	defer h.mu.Unlock()
	starts := map[wire.Resource]Start{}
	for _, s := range h.streams {
		if start := s.reader.Start(); start != (etcd.Start{}) {
			starts[s.resource] = Start{Start: start, Restored: s.restored}
		}
	}
	return starts
}
