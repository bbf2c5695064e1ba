// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/semaphore"
	"k8s.io/apimachinery/pkg/util/wait"
)

// deletesPerBatch bounds a batch of deletions found by a relist or a Drain.
const deletesPerBatch = 4096

// ReaderConfig says what a Reader reads.
type ReaderConfig struct {
	Log *slog.Logger
	// Prefix ends in a slash; events carry the keys below it.
	Prefix string
	// Canary is the key whose presence says that the source has written all of
	// its state; empty where a list is complete by itself.
	Canary string
	// RelistJitter is the longest wait before a list that isn't the first, or follows a
	// resumption, so that the readers of an etcd that went away don't return as one. The
	// default is a second; negative is none.
	RelistJitter time.Duration
	// Lists, if set, bounds how many lists run at once over all Readers that
	// share it, and with it the memory that their pages take.
	Lists *semaphore.Weighted
	// ReadAhead asks for the next page of a list while the Observer takes in the
	// last one: faster where both sides have a core to spare, for the memory of a
	// page more.
	ReadAhead bool
	// Passthrough is for an Observer that remembers itself what it was told, so
	// that the Reader need not do so as well. What comes out is not a difference
	// then:
	//
	//   - A list brings every key, and its first page is marked First. What the
	//     Observer knew before that batch, and wasn't told of again by the time of
	//     the next one that is Synced, is gone. A list that ended halfway is
	//     followed by another First.
	//   - A watch may delete what the Observer never heard of.
	//   - Resend brings all keys, whichever were asked for; Drain tells nothing of
	//     any; New isn't set; Len is 0.
	Passthrough bool
	// Group, if set, is whose watch the Reader shares with those of other prefixes.
	Group *WatchGroup
	// Progress, if set, has batches carry their Position, and etcd asked at this
	// interval for that of a prefix in which nothing changes: else its history would
	// be compacted away from under it.
	Progress time.Duration
}

// Reader follows one prefix of one source. The source is what counts: it may
// be served by another etcd, with other revisions, each time that Run is called
// or the connection comes back; the Observer sees one continuous difference.
type Reader struct {
	cfg      ReaderConfig
	observer Observer

	// Owned by Run (or Drain).
	memory   memory
	position position
	complete bool // the canary was seen at this etcd
	// absentAt is the revision at which the canary was not there.
	absentAt int64
	events   []Event
	seed     seed
	outage   outage // which may outlast a Run
	// confirmPatience is the constant, but in tests.
	confirmPatience time.Duration

	synced        atomic.Bool
	lists         atomic.Uint64
	postponements atomic.Uint64 // times that the server put a list off

	mu      sync.Mutex
	resend  []string
	again   bool   // resend everything
	asked   uint64 // calls of Resend
	covered uint64 // those that the current list, or the last one, has taken in
	wake    chan struct{}
	lastErr error
	start   Start
}

// position is how far a Reader is at one etcd. The anchor is one key as it was
// at or before that revision: an etcd that remembers it is the one that we
// read. The cluster ID alone can't tell: an etcd rebuilt with the same URLs and
// token has the same one, at any revision.
type position struct {
	clusterID uint64
	revision  int64
	anchor    mvccpb.KeyValue // without its value; Key is empty where there is none
}

// Reasons to leave the watch that are no failures.
var (
	errReconnected = errors.New("connection was made anew")
	errCanary      = errors.New("source became complete")
	errResend      = errors.New("observer wants entries again")
)

// NewReader makes a Reader. It does nothing until Run.
func NewReader(cfg ReaderConfig, observer Observer) *Reader {
	if cfg.RelistJitter == 0 {
		cfg.RelistJitter = time.Second
	}
	r := &Reader{cfg: cfg, observer: observer, memory: passthrough{}, wake: make(chan struct{}, 1), confirmPatience: confirmPatience}
	if !cfg.Passthrough {
		r.memory = newMirror()
	}
	return r
}

// Synced says whether the source was complete once. It stays true while the
// source is away.
func (r *Reader) Synced() bool { return r.synced.Load() }

// Lists is the number of lists begun so far. One that was resumed has made none.
func (r *Reader) Lists() uint64 { return r.lists.Load() }

// LastError is why the source isn't being followed, or nil while it is. A list
// that the server has put off is such a reason, and no failure.
func (r *Reader) LastError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastErr
}

// Resend has the given keys (nil: all) emitted again, with what the source then
// says of them, and Synced set once more after them. It gives the number of this
// call, from 1: a Synced batch says by Resent which of them it comes after, since
// a list that is under way now will end with one as well.
func (r *Reader) Resend(keys []string) (number uint64) {
	r.mu.Lock()
	r.asked++
	number = r.asked
	if keys == nil {
		r.again = true
	}
	r.resend = append(r.resend, keys...)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return number
}

// Drain emits a deletion of every known key. The next Run starts from nothing.
// It must not be called while Run runs.
func (r *Reader) Drain(ctx context.Context) {
	r.position, r.complete, r.seed = position{}, false, seed{}
	r.synced.Store(false)
	r.memory.beginList()
	r.emitStale(ctx)
}

// Run follows the source over client until ctx ends (nil), or the client is
// closed (ErrClosed). Errors of the etcd are retried with a jittered back-off
// and given by LastError; nothing known is dropped for them.
func (r *Reader) Run(ctx context.Context, client *Client) error {
	newBackoff := func() wait.Backoff {
		return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 15 * time.Second}
	}
	backoff := newBackoff()
	for {
		followed, err := r.follow(ctx, client)
		switch {
		case ctx.Err() != nil:
			return nil
		case client.isClosed():
			return ErrClosed
		}
		if followed {
			backoff = newBackoff()
		}
		if errors.Is(err, errReconnected) || errors.Is(err, errCanary) || errors.Is(err, errResend) ||
			errors.Is(err, errUnconfirmed) {
			continue
		}
		r.interrupted(ctx, err)
		if sleep(ctx, backoff.Step()) != nil {
			return nil
		}
	}
}

// interrupted says why the source isn't being followed, and follows that it is again.
func (r *Reader) interrupted(ctx context.Context, err error) {
	r.setError(err)
	level := slog.LevelDebug
	if r.outage.failed(time.Now(), err) {
		level = slog.LevelWarn
	}
	r.cfg.Log.Log(ctx, level, "Following etcd prefix is interrupted, trying again", "prefix", r.cfg.Prefix, "error", err)
}

func (r *Reader) follows() {
	r.setError(nil)
	if since, was := r.outage.over(); was {
		r.cfg.Log.Info("Following etcd prefix again", "prefix", r.cfg.Prefix, "interrupted-since", since)
	}
}

func (r *Reader) setError(err error) {
	r.mu.Lock()
	r.lastErr = err
	r.mu.Unlock()
}

// follow catches up, by resuming or by a list, and then watches. followed says
// that it came to watch, so that the back-off starts over.
func (r *Reader) follow(ctx context.Context, client *Client) (followed bool, err error) {
	generation, changed := client.Generation()
	forced := r.takeResend()
	resumed := false
	if forced {
		r.mustRelist(RelistedAsked)
	} else {
		if resumed, err = r.resumable(ctx, client); err != nil {
			return false, fmt.Errorf("resuming %q: %w", r.cfg.Prefix, err)
		}
	}
	if !resumed {
		if err := r.list(ctx, client, generation); err != nil {
			if forced {
				r.Resend(nil)
			}
			return false, fmt.Errorf("listing %q: %w", r.cfg.Prefix, err)
		}
	}
	if now, _ := client.Generation(); now != generation {
		// What was just read may come from two different etcds.
		if generation != 0 {
			return false, errReconnected
		}
		// The first connection is made by the first request.
		generation = now
		_, changed = client.Generation()
	}
	r.follows()
	return true, r.watch(ctx, client, generation, changed)
}

// takeResend applies what Resend asked for and says whether it calls for a list.
func (r *Reader) takeResend() bool {
	r.mu.Lock()
	keys, all := r.resend, r.again
	r.resend, r.again = nil, false
	r.covered = r.asked
	r.mu.Unlock()
	switch {
	case all:
		r.memory.forget(nil)
	case len(keys) > 0:
		r.memory.forget(keys)
	}
	return all || len(keys) > 0
}

// resent is what the list that just ended covers.
func (r *Reader) resent() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.covered
}

// resumable says whether this etcd is the one that the position belongs to, so
// that a watch from there misses nothing.
func (r *Reader) resumable(ctx context.Context, client *Client) (bool, error) {
	anchor := r.position.anchor
	if r.position.revision == 0 || !r.complete || len(anchor.Key) == 0 {
		r.mustRelist(RelistedNoPosition)
		return false, nil // where the prefix was empty, a list costs nothing
	}
	for _, revision := range []int64{0, anchor.ModRevision} {
		resp, err := client.get(ctx, 10*time.Second, &pb.RangeRequest{Key: anchor.Key, Revision: revision})
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			r.mustRelist(RelistedCompacted)
			return false, nil
		case errors.Is(err, rpctypes.ErrFutureRev):
			r.mustRelist(RelistedOtherEtcd)
			return false, nil
		case err != nil:
			return false, err
		case resp.Header.ClusterId != r.position.clusterID, resp.Header.Revision < r.position.revision:
			r.mustRelist(RelistedOtherEtcd)
			return false, nil
		}
		if len(resp.Kvs) == 1 && sameVersion(resp.Kvs[0], &anchor) {
			r.resumes(resp.Header.Revision)
			return true, nil
		}
		// It may have changed since: then its history has it.
	}
	r.mustRelist(RelistedOtherEtcd)
	return false, nil
}

// sameVersion says whether two reads of a key saw the same write. Lease IDs are
// drawn from the clock by etcd, so that they also tell two histories apart that
// ran alike.
func sameVersion(a, b *mvccpb.KeyValue) bool {
	return a.CreateRevision == b.CreateRevision && a.ModRevision == b.ModRevision &&
		a.Version == b.Version && a.Lease == b.Lease
}

// relistPause is how long a list waits at most: none does for what nobody has yet.
func (r *Reader) relistPause() time.Duration {
	if r.lists.Load() == 0 && !r.Synced() {
		return 0
	}
	return max(r.cfg.RelistJitter, 0)
}

// list reads the prefix at one revision and emits the difference. Deletions
// are emitted only once the source is complete.
func (r *Reader) list(ctx context.Context, client *Client, generation uint64) error {
	pause := r.relistPause()
	r.lists.Add(1)
	if pause > 0 {
		if err := sleep(ctx, rand.N(pause)); err != nil {
			return err
		}
	}
	if r.cfg.Lists != nil {
		if err := r.cfg.Lists.Acquire(ctx, 1); err != nil {
			return err
		}
		defer r.cfg.Lists.Release(1)
	}
	// The canary is read first: what the source wrote before it is in the list.
	complete, canaryFrom := r.cfg.Canary == "", uint64(0)
	if !complete {
		resp, err := client.get(ctx, 10*time.Second, &pb.RangeRequest{Key: []byte(r.cfg.Canary), KeysOnly: true})
		if err != nil {
			return err
		}
		complete, r.absentAt = len(resp.Kvs) > 0, resp.Header.Revision
		canaryFrom = resp.Header.ClusterId
	}

	r.seed.until = 0
	r.memory.beginList()
	// A page has far more events than a response of the watch ever will.
	defer func() { r.events = nil }()
	var at position
	first := true
	l := listing{prefix: r.cfg.Prefix, ahead: r.cfg.ReadAhead, postponed: r.postponed}
	err := l.pages(ctx, client, func(resp *pb.RangeResponse) error {
		if at.clusterID == 0 {
			if canaryFrom != 0 && canaryFrom != resp.Header.ClusterId {
				return ErrOtherEtcd
			}
			at.clusterID, at.revision = resp.Header.ClusterId, resp.Header.Revision
			// From here on the Observer is told what this etcd has. A list that
			// ends halfway must not be followed by a watch from where another
			// one was.
			r.position = position{}
		} else if at.clusterID != resp.Header.ClusterId {
			return ErrOtherEtcd
		}
		for _, kv := range resp.Kvs {
			at.anchorAt(kv)
		}
		at.anchor.Key = bytes.Clone(at.anchor.Key) // else it would keep its page
		r.events = r.memory.page(r.events[:0], len(r.cfg.Prefix), resp.Kvs)
		r.emit(ctx, Batch{Events: r.events, Listing: true, First: r.cfg.Passthrough && first})
		first = false
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if now, _ := client.Generation(); generation != 0 && now != generation {
		// Canary and pages may come from two etcds, of the same ID even: that the
		// one is complete says nothing of the other.
		return errReconnected
	}
	r.position, r.complete = at, complete
	if complete {
		r.emitStale(ctx)
		r.synced.Store(true)
		r.listed()
		r.emit(ctx, Batch{Synced: true, Resent: r.resent(), Position: r.at()})
	}
	return nil
}

// postponed waits for a server that has put the list off.
func (r *Reader) postponed(ctx context.Context, first bool, reason error, delay time.Duration) error {
	r.postponements.Add(1)
	r.setError(fmt.Errorf("listing %q: %w", r.cfg.Prefix, reason))
	if r.cfg.Lists == nil || !first {
		return sleepPostponed(ctx, delay)
	}
	// Nothing of it takes memory yet: meanwhile another Reader may list, from an
	// etcd with less to do. Whether ctx ends or not, list will give this back.
	r.cfg.Lists.Release(1)
	err := sleepPostponed(ctx, delay)
	if again := r.cfg.Lists.Acquire(context.WithoutCancel(ctx), 1); err == nil {
		err = again
	}
	return err
}

// anchorAt moves the anchor to kv if it is the later one.
func (p *position) anchorAt(kv *mvccpb.KeyValue) {
	if kv.ModRevision > p.anchor.ModRevision {
		p.anchor = mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision,
			ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
	}
}

// watch delivers changes until something calls for another look at the source.
func (r *Reader) watch(ctx context.Context, client *Client, generation uint64, changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	after := r.position.revision
	from := after + 1
	if r.cfg.Progress > 0 {
		// The next revision may not be there yet: as long as a watch of a stream
		// begins in the future, etcd doesn't tell the others of that stream how far
		// they are. So this one begins where it is, and deliver leaves that out.
		from = after
	}
	responses := r.changes(ctx, client, generation, from)
	var canary clientv3.WatchChan
	if !r.complete {
		// It wasn't there at that revision, which is no more in the future either.
		canary = client.etcd.Watch(ctx, r.cfg.Canary, clientv3.WithRev(r.absentAt), clientv3.WithFilterDelete())
	}
	progress := r.progress()
	defer progress.stop()
	r.confirm(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			return errReconnected
		case <-r.wake:
			return errResend
		case <-progress.C:
			if err := r.askProgress(ctx, client, progress); err != nil {
				return err
			}
		case resp := <-canary:
			if len(resp.Events) > 0 {
				return errCanary
			}
			if err := resp.Err(); err != nil || resp.Canceled {
				return fmt.Errorf("watching canary %q: %w", r.cfg.Canary, errors.Join(err, ctx.Err()))
			}
		case resp, ok := <-responses:
			// The client resumes a watch by itself, at whatever etcd it then
			// reaches. What arrives after a new connection was made is not
			// trusted until the position was checked.
			if now, _ := client.Generation(); now != generation {
				return errReconnected
			}
			if err := resp.Err(); err != nil {
				if errors.Is(err, rpctypes.ErrCompacted) {
					r.position.revision = 0
					r.mustRelist(RelistedCompacted)
				}
				return fmt.Errorf("watching %q: %w", r.cfg.Prefix, err)
			}
			if !ok || resp.Canceled {
				return fmt.Errorf("watching %q: %w", r.cfg.Prefix, errors.Join(errors.New("watch ended"), ctx.Err()))
			}
			if resp.Header.ClusterId != r.position.clusterID {
				r.position.revision = 0
				r.mustRelist(RelistedOtherEtcd)
				return fmt.Errorf("watching %q: %w", r.cfg.Prefix, ErrOtherEtcd)
			}
			if n := len(resp.Events); n > 0 && resp.Events[0].Kv.ModRevision <= after {
				resp.Events = slices.DeleteFunc(resp.Events, func(ev *clientv3.Event) bool { return ev.Kv.ModRevision <= after })
				if len(resp.Events) == 0 {
					continue // it is no notification of progress
				}
			}
			r.deliver(ctx, &resp)
		}
	}
}

// changes watches the prefix from a revision on.
func (r *Reader) changes(ctx context.Context, client *Client, generation uint64, from int64) <-chan clientv3.WatchResponse {
	if r.cfg.Group != nil {
		return r.cfg.Group.join(ctx, client, generation, r.cfg.Prefix, from)
	}
	return client.etcd.Watch(ctx, r.cfg.Prefix, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
}

// deliver emits one watch response as one batch.
func (r *Reader) deliver(ctx context.Context, resp *clientv3.WatchResponse) {
	r.events = r.events[:0]
	for _, ev := range resp.Events {
		key := ev.Kv.Key[len(r.cfg.Prefix):]
		if ev.Type == clientv3.EventTypeDelete {
			r.events = r.memory.delete(r.events, key)
		} else {
			r.events = r.memory.put(r.events, key, ev.Kv.Value)
			r.position.anchorAt(ev.Kv)
		}
	}
	// A response that catches up may end before the revision in its header;
	// only one without events (a progress notification) speaks for all of it.
	if n := len(resp.Events); n > 0 {
		r.position.revision = max(r.position.revision, resp.Events[n-1].Kv.ModRevision)
	} else {
		r.position.revision = max(r.position.revision, resp.Header.Revision)
	}
	r.emit(ctx, Batch{Events: r.events, Position: r.at()})
	r.confirm(ctx)
}

// emitStale emits deletions of what the list that just ended hasn't seen.
func (r *Reader) emitStale(ctx context.Context) {
	for more := true; more; {
		r.events, more = r.memory.stale(r.events[:0], deletesPerBatch)
		r.emit(ctx, Batch{Events: r.events})
	}
}

func (r *Reader) emit(ctx context.Context, batch Batch) {
	if len(batch.Events) > 0 || batch.Synced || batch.First || batch.Position != nil {
		r.observer.OnBatch(ctx, batch)
		// Else the values of each Reader's last batch would stay in memory.
		clear(batch.Events)
	}
}
