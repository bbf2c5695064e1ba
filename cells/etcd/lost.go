// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// This file is about what etcd loses: a lease that ran out takes its keys with
// it, and an etcd that comes back empty has lost everything. Values aren't kept
// here, so the owners of the Scopes are asked for them again.

// check finds out what the etcd that is now connected still has. It is false if that
// can't be told, or is for a later connection to tell.
func (w *Writer) check(ctx context.Context) bool {
	generation, _ := w.client.Generation()
	for backoff := newRetry(); ; {
		another, err := w.checkEtcd(ctx)
		if err == nil && !another {
			err = w.checkLeases(ctx)
		}
		if err == nil {
			break
		}
		// gRPC fails requests while the connection that called for this check is
		// still being made. A later connection has a check of its own.
		if now, _ := w.client.Generation(); now != generation || w.client.isClosed() || sleep(ctx, backoff.Step()) != nil {
			return false
		}
	}
	// It answers, so that what waits need not wait out a back-off.
	w.mu.Lock()
	w.retry, w.notUntil = newRetry(), time.Time{}
	w.mu.Unlock()
	w.wakeUp()
	return true
}

// checkLeases asks for every lease whether etcd still knows it. It goes on when
// that can't be told of one, and returns that error.
func (w *Writer) checkLeases(ctx context.Context) error {
	w.mu.Lock()
	ids := make(map[leaseNumber]clientv3.LeaseID)
	for _, n := range w.leases.alive() {
		ids[n] = w.leases.id(n)
	}
	w.mu.Unlock()
	var (
		gone   []leaseNumber
		failed error
	)
	for n, id := range ids {
		switch expired, err := w.leases.expired(ctx, id); {
		case err != nil:
			failed = err
		case expired:
			gone = append(gone, n)
		}
	}
	w.lost(gone)
	return failed
}

// checkEtcd reads some key for the header of the response, if this Writer has
// written anything.
func (w *Writer) checkEtcd(ctx context.Context) (another bool, err error) {
	w.mu.Lock()
	before, known, key := w.etcd.revision, w.etcd.clusterID != 0, ""
	for s := range w.scopes {
		key = max(key, s.cfg.Prefix)
	}
	w.mu.Unlock()
	if !known || key == "" {
		return false, nil
	}
	resp, err := w.client.get(ctx, 10*time.Second, &pb.RangeRequest{Key: []byte(key), KeysOnly: true})
	if err != nil {
		return false, err
	}
	return w.notice(ctx, resp.Header, before), nil
}

// notice takes note of a response's header, and of the loss of everything if it is
// another etcd's than the one that was known before the request was sent.
func (w *Writer) notice(ctx context.Context, header *pb.ResponseHeader, before int64) (another bool) {
	w.mu.Lock()
	another = w.foundAnother(header, before)
	var lost loss
	if another {
		lost = w.loseEverything()
	}
	w.mu.Unlock()
	if another {
		w.makeGood(ctx, lost)
	}
	return another
}

// foundAnother compares a response's header with what was known before the
// request was sent, and takes note of it. Reads and commits are linearizable:
// an etcd that answers with an earlier revision than was seen before the
// request is another one, whatever ID it has.
func (w *Writer) foundAnother(header *pb.ResponseHeader, before int64) bool {
	another := w.etcd.clusterID != 0 &&
		(header.ClusterId != w.etcd.clusterID || header.Revision < before)
	if another {
		w.etcd.revision = 0
	}
	w.etcd.clusterID = header.ClusterId
	w.etcd.revision = max(w.etcd.revision, header.Revision)
	return another
}

// lost has the keys on these leases written again.
func (w *Writer) lost(numbers []leaseNumber) {
	if len(numbers) == 0 {
		return
	}
	w.mu.Lock()
	lost := make(map[leaseNumber]bool, len(numbers))
	for _, n := range numbers {
		if w.leases.lose(n) {
			lost[n] = true
		}
	}
	gone := make(map[*Scope][]string)
	for s := range w.scopes {
		for key, r := range s.records.all() {
			if lost[r.lease] {
				s.markLost(r)
				gone[s] = append(gone[s], strings.Clone(key))
			}
		}
	}
	w.queueRefills(gone)
	w.mu.Unlock()
	if len(lost) > 0 {
		w.log.Warn("Leases are lost, writing their keys again", "leases", len(lost))
	}
	w.wakeUp()
}

// loss is what follows from the loss of everything: whose prefix has to be read, and
// whose owner has to be asked.
type loss struct{ loaded, asked []*Scope }

// loseEverything marks all keys of all Scopes as lost. From then on no canary is written
// before its keys. The lock is held.
func (w *Writer) loseEverything() (out loss) {
	for _, n := range w.leases.alive() {
		w.leases.lose(n)
	}
	for s := range w.scopes {
		for _, r := range s.records.all() {
			s.markLost(r)
		}
		if s.cfg.Refill != nil {
			// From here on, since a Complete that comes before the Refill would
			// delete what is about to be asked for.
			s.incomplete = true
			s.refills++
			out.asked = append(out.asked, s)
		}
		if s.loaded {
			out.loaded = append(out.loaded, s)
		}
	}
	w.proof = written{}
	w.withdrawCanaries()
	return out
}

// makeGood has all keys of all Scopes written again. The etcd may have been brought
// back from a snapshot: what it holds is learnt first, so that what has been deleted
// since goes again.
func (w *Writer) makeGood(ctx context.Context, lost loss) {
	w.log.Warn("Etcd has lost its data, writing everything again")
	for _, s := range lost.loaded {
		for backoff := newRetry(); ; {
			err := s.Load(ctx)
			if err == nil {
				break
			}
			// Without it the rest is written all the same; what is too much stays
			// until the next etcd, or the next process.
			if backoff.Steps == 0 || w.client.isClosed() || sleep(ctx, backoff.Step()) != nil {
				w.log.Warn("Reading what etcd still holds failed", "prefix", s.cfg.Prefix, "error", err)
				break
			}
		}
	}
	w.mu.Lock()
	for _, s := range lost.asked {
		w.callbacks = append(w.callbacks, func() { s.cfg.Refill(nil) })
	}
	for key := range w.canaries.records.all() {
		w.restoreCanary(key)
	}
	w.mu.Unlock()
	w.wakeUp()
}

func (s *Scope) markLost(r *record) {
	s.w.leases.drop(r.lease)
	*r = record{hash: r.hash, flags: recordLost | recordStale}
}

// queueRefills has the owners asked. A canary comes back by the Complete of its
// Scope where that lost keys too, and by itself where it didn't. The lock is held.
func (w *Writer) queueRefills(gone map[*Scope][]string) {
	for s, keys := range gone {
		if s == w.canaries || s.cfg.Refill == nil {
			continue
		}
		s.incomplete = true
		s.refills++
		w.callbacks = append(w.callbacks, func() { s.cfg.Refill(keys) })
	}
	w.withdrawCanaries()
	for _, key := range gone[w.canaries] {
		w.restoreCanary(key)
	}
}

// restoreCanary writes a lost canary again, unless its Scope has lost keys too.
func (w *Writer) restoreCanary(key string) {
	if owner := w.canaryOf[key]; owner != nil {
		owner.writeCanary()
	}
}

func (w *Writer) runCallbacks() {
	w.mu.Lock()
	callbacks := w.callbacks
	w.callbacks = nil
	w.mu.Unlock()
	for _, callback := range callbacks {
		callback()
	}
}

// isTooLargeMessage recognises gRPC's refusal to send a message beyond the
// client's limit (2 MiB by etcd's default), which has no code of its own.
func isTooLargeMessage(description string) bool {
	return strings.Contains(description, "message larger than max")
}
