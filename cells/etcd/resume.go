// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// This file lets a Reader go on where one of an earlier process was. The rules are
// those of a connection that was lost and comes back (resumable): the position was
// kept outside of the process in the meantime, and nothing else is different. Except
// for one thing: an Observer that waits for Synced before it removes what it wasn't
// told of (the BPF map's entries of an earlier process, say) must not do so before
// it knows what happened since the position, although no list will bring that.

const (
	// confirmInterval is how often etcd is asked whether a watch that was resumed
	// has caught up. It brings a watch that begins in the past up to date every
	// 100 ms, and leaves a question that comes before that unanswered.
	confirmInterval = 50 * time.Millisecond
	// confirmPatience is how long a resumed watch may leave it open whether it has
	// caught up, before the prefix is listed. Etcd doesn't say so while another watch
	// of the same stream begins in the future, until the next write of any key (see
	// Reader.watch); and proxies never may.
	confirmPatience = 10 * time.Second
)

// Position is how far a Reader is at one etcd, to be kept for Reader.Seed: all
// that there was up to Revision was delivered, and nothing after it.
type Position struct {
	// ClusterID is that of the etcd.
	ClusterID uint64
	Revision  int64
	// Anchor is a key as it was at Revision or before. An etcd that remembers it
	// is the one that was read; the cluster ID alone can't tell.
	Anchor Anchor
}

// Anchor is one version of a key. The Key is empty where the prefix was.
type Anchor struct {
	Key                                           string
	CreateRevision, ModRevision, Version, LeaseID int64
}

// Start is how a Reader that was seeded began.
type Start struct {
	// Pending: it hasn't yet.
	Pending bool
	// Resumed: the etcd had all of the history since, and no list was made.
	Resumed bool
	// Relisted is why it was not so; empty where Resumed, and for a Reader that
	// wasn't seeded.
	Relisted Relisted
}

// Relisted is a reason for a list in spite of a Position. It is a metric label,
// so the set is closed.
type Relisted string

const (
	// RelistedOtherEtcd means: another etcd than the one of the Position answers.
	RelistedOtherEtcd Relisted = "other-etcd"
	// RelistedCompacted means: the history since the Position is gone.
	RelistedCompacted Relisted = "compacted"
	// RelistedNoPosition means: there was none, or the prefix was empty there, so that
	// there is nothing to know the etcd by.
	RelistedNoPosition Relisted = "no-position"
	// RelistedUnconfirmed means: the etcd didn't say whether the watch had caught up.
	RelistedUnconfirmed Relisted = "unconfirmed"
	// RelistedAsked means: Resend was called before.
	RelistedAsked Relisted = "asked"
)

// seed is what a seeded Reader remembers of that, until it has begun.
type seed struct {
	// waits: Synced is still to be told.
	waits bool
	// until is the revision that the watch has to reach for that; 0 where it takes
	// a list.
	until int64
	// deadline is when it must have.
	deadline time.Time
	// relist is why the next list is made.
	relist Relisted
}

// errUnconfirmed leaves the watch for a list.
var errUnconfirmed = errors.New("etcd doesn't say whether the watch has caught up")

// Seed has the first Run go on from at, where an earlier Reader of the same prefix
// was whose source was complete: it watches from there if the etcd that it then
// reaches is the same one and has the history since, and else lists and tells the
// difference. Either way a Synced batch comes once the Observer was told all that
// there was when Run began; until then Synced is false. A Position without a
// Revision, or without an anchor, is one to list from.
//
// What the Observer is known to have at that Position is told by Remember. Both
// must not be called after Run.
func (r *Reader) Seed(at Position) {
	r.position, r.complete = position{
		clusterID: at.ClusterID,
		revision:  at.Revision,
		anchor: mvccpb.KeyValue{Key: []byte(at.Anchor.Key), CreateRevision: at.Anchor.CreateRevision,
			ModRevision: at.Anchor.ModRevision, Version: at.Anchor.Version, Lease: at.Anchor.LeaseID},
	}, true
	r.seed = seed{waits: true}
	r.setStart(Start{Pending: true})
}

// Remember notes that the Observer has this value of a key (see Seed). If it is
// not what the etcd has at the Position, a list will tell, but a watch can't. Nothing
// of value is kept. A Reader with Passthrough remembers nothing.
func (r *Reader) Remember(key string, value []byte) {
	r.memory.remember(key, value)
}

// Start says how a Reader that was seeded began.
func (r *Reader) Start() Start {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start
}

func (r *Reader) setStart(start Start) {
	r.mu.Lock()
	r.start = start
	r.mu.Unlock()
}

// at is the Position for a batch; nil where the Observer doesn't want it, or has
// been told things of which a list will take some back.
func (r *Reader) at() *Position {
	if r.cfg.Progress == 0 || !r.complete || r.position.revision == 0 {
		return nil
	}
	anchor := &r.position.anchor
	return &Position{ClusterID: r.position.clusterID, Revision: r.position.revision,
		Anchor: Anchor{Key: string(anchor.Key), CreateRevision: anchor.CreateRevision,
			ModRevision: anchor.ModRevision, Version: anchor.Version, LeaseID: anchor.Lease}}
}

// mustRelist notes why a seeded Reader can't resume.
func (r *Reader) mustRelist(reason Relisted) {
	if r.seed.waits && r.seed.relist == "" {
		r.seed.relist = reason
	}
}

// resumes notes that a watch from the position will do, at an etcd that is at this
// revision by now.
func (r *Reader) resumes(revision int64) {
	if r.seed.waits {
		r.seed.until = revision
		r.seed.deadline = time.Now().Add(r.confirmPatience)
	}
}

// listed notes that a list has told all.
func (r *Reader) listed() {
	if r.seed.waits {
		r.setStart(Start{Relisted: r.seed.relist})
		r.seed = seed{}
	}
}

// confirm says Synced once a resumed watch has brought what there was when it began.
func (r *Reader) confirm(ctx context.Context) {
	if r.seed.until == 0 || r.position.revision < r.seed.until {
		return
	}
	r.seed = seed{}
	r.setStart(Start{Resumed: true})
	r.synced.Store(true)
	r.emit(ctx, Batch{Synced: true, Resent: r.resent(), Position: r.at()})
}

// progress asks etcd, when its ticker says so, how far a watch is in whose prefix
// nothing changes.
type progress struct {
	ticker *time.Ticker
	C      <-chan time.Time
	// last is the revision when it ticked last.
	last int64
}

func (r *Reader) progress() *progress {
	interval := r.cfg.Progress
	if r.seed.until > 0 {
		interval = confirmInterval
	}
	if interval <= 0 {
		return &progress{}
	}
	ticker := time.NewTicker(interval)
	return &progress{ticker: ticker, C: ticker.C, last: r.position.revision}
}

func (p *progress) stop() {
	if p.ticker != nil {
		p.ticker.Stop()
	}
}

// askProgress is called when the ticker of p has ticked, with the watch's context: by
// it the client finds the stream.
func (r *Reader) askProgress(ctx context.Context, client *Client, p *progress) error {
	if r.seed.until > 0 {
		if !time.Now().Before(r.seed.deadline) {
			r.position.revision = 0
			r.mustRelist(RelistedUnconfirmed)
			return errUnconfirmed
		}
	} else {
		if r.cfg.Progress <= 0 {
			p.stop()
			return nil
		}
		p.ticker.Reset(r.cfg.Progress)
		last := p.last
		p.last = r.position.revision
		if last != p.last {
			return nil // it moves by itself
		}
	}
	return client.etcd.RequestProgress(ctx)
}
