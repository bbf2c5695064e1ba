// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// maxTxnBytes keeps a transaction below etcd's default request limit of
	// 1.5 MiB.
	maxTxnBytes = 1 << 20
	// maxPendingBytes is where Admit begins to wait: two full commits, beside
	// those under way, are enough to keep etcd busy while more is read. With 16
	// MiB a mesh of 54,400 keys was in memory as a whole before it was written,
	// and not written any faster.
	maxPendingBytes = 2 * maxTxnBytes
	// defaultTxnOps is etcd's own limit of operations in a transaction
	// (--max-txn-ops), to which a Writer falls back.
	defaultTxnOps = 128
	// commitTimeout bounds one transaction.
	commitTimeout = 15 * time.Second
)

// Writer turns operations on keys into commits: each takes what gathered during
// the last one (group commit), up to the server's limits; under sustained load
// it waits a little for more (see pacer). While commits are full several are
// under way at once, so that the order between different keys isn't kept; use
// Scope.Barrier where it matters.
//
// The memory it takes is bounded by the number of keys, not of operations.
type Writer struct {
	log     *slog.Logger
	client  *Client
	options WriterOptions
	// keeping ends the leases' keep-alives; the leases live on in etcd until
	// their TTL, for a successor to adopt.
	keeping     context.Context
	stopKeeping context.CancelFunc
	limiter     *rate.Limiter
	wake        chan struct{}

	mu       sync.Mutex
	plan     *plan
	pacer    pacer
	leases   *leasePool
	scopes   map[*Scope]struct{}
	canaries *Scope
	canaryOf map[string]*Scope
	arrived  int // operations since the pacer last asked
	maxOps   int
	running  int // commits under way
	retry    wait.Backoff
	notUntil time.Time // no commit before, after a failure
	// noSpace: etcd takes no puts, nor transactions with one, until an operator
	// has made room. Deletes must not wait behind them: what they would take away
	// sends traffic to where nobody is, and is part of what fills the etcd.
	noSpace bool
	started time.Time // of the last commit
	first   time.Time // when the first operation since was there
	proof   written   // that this etcd is the one that was written to
	etcd    struct {  // as the last commit found it
		clusterID uint64
		revision  int64
	}
	flights   map[*operation]int64 // since when the oldest of each commit under way has waited
	callbacks []func()             // to call from Run, without the lock
	eased     chan struct{}        // closed and renewed when less is pending
	stats     WriterStats
	outage    outage

	onCommit func(Commit) // set before Run
}

// WriterOptions are a hive's for its Writer; a hive that has none has the zero ones.
type WriterOptions struct {
	// Permanent has no key on a lease, whatever the Scopes say: what was written stays
	// while nobody keeps it, and the next process deletes what has gone since.
	Permanent bool
	// Fence, if set, has to hold for anything to be written.
	Fence *Fence
}

// NewWriter makes a Writer. Nothing is written until Run.
func NewWriter(log *slog.Logger, client *Client) *Writer {
	return newWriter(log, client, WriterOptions{})
}

func newWriter(log *slog.Logger, client *Client, options WriterOptions) *Writer {
	keeping, stop := context.WithCancel(context.Background())
	w := &Writer{
		log: log, client: client, options: options, keeping: keeping, stopKeeping: stop,
		wake:     make(chan struct{}, 1),
		plan:     newPlan(),
		leases:   newLeasePool(log, client),
		scopes:   make(map[*Scope]struct{}),
		canaryOf: make(map[string]*Scope),
		retry:    newRetry(),
		eased:    make(chan struct{}),
		flights:  make(map[*operation]int64),
	}
	w.canaries = w.Scope(ScopeConfig{Lease: true})
	w.leases.onLost = func(n leaseNumber) { w.lost([]leaseNumber{n}) }
	w.configure(client.cfg)
	return w
}

// configure sets the limits; before Run.
func (w *Writer) configure(cfg ClientConfig) {
	w.limiter = rate.NewLimiter(rate.Limit(cfg.Options.QPS), max(1, cfg.Options.QPS/4))
	w.pacer = pacer{longest: cfg.Options.CommitDelay, batch: cmp.Or(cfg.Options.CommitBatch, pacerBatch), last: time.Now()}
	w.leases.ttl = cfg.LeaseTTL
	w.maxOps = cfg.Options.MaxTxnOps
}

func newRetry() wait.Backoff {
	return wait.Backoff{Duration: 20 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 12, Cap: 10 * time.Second}
}

func (w *Writer) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Admit waits while much is pending. Whoever can take its time (a list can, a
// watch can't) calls it before Apply, so that memory stays small.
func (w *Writer) Admit(ctx context.Context) error {
	for {
		w.mu.Lock()
		busy, eased := w.plan.bytes > maxPendingBytes, w.eased
		w.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-eased:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Run commits until ctx ends, and waits for the commits that are under way.
func (w *Writer) Run(ctx context.Context) error {
	var commits sync.WaitGroup
	defer func() {
		w.stopKeeping()
		commits.Wait()
		w.leases.keepers.Wait()
	}()
	_, changed := w.client.Generation()
	for {
		batch, delay := w.nextCommit(time.Now())
		w.runCallbacks()
		if batch != nil {
			first := batch[0] // a batch may be split
			commits.Go(func() {
				w.commit(ctx, batch)
				w.mu.Lock()
				w.running--
				delete(w.flights, first)
				w.mu.Unlock()
				w.wakeUp()
			})
			continue
		}
		var timer <-chan time.Time
		if delay > 0 {
			timer = time.After(delay)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer:
		case <-changed:
			_, changed = w.client.Generation()
			commits.Go(func() { w.check(ctx) })
		}
	}
}

// nextCommit takes the operations of the next commit, or says after which delay
// to ask again; 0 is not before something happens.
func (w *Writer) nextCommit(now time.Time) ([]*operation, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plan.unpark(now)
	if w.plan.queued == 0 {
		if len(w.plan.parked) > 0 {
			return nil, time.Second
		}
		return nil, 0
	}
	// Deletes needn't wait for a full etcd to be tried again.
	deletesOnly := w.noSpace && w.plan.deletes > 0
	if wait := w.notUntil.Sub(now); wait > 0 && !deletesOnly {
		return nil, wait
	}
	full := w.plan.full(w.maxOps, maxTxnBytes)
	if w.running > 0 && (!full || w.running >= w.client.cfg.Options.MaxInflight) {
		return nil, 0
	}
	if !full {
		if w.first.IsZero() {
			w.first = now
		}
		gathered := w.first.Add(w.client.cfg.Options.CommitGather)
		if wait := max(gathered.Sub(now), w.started.Add(w.pacer.wait()).Sub(now)); wait > 0 {
			return nil, wait
		}
	}
	if !w.limiter.AllowN(now, 1) {
		// Rounded up: a delay of zero would mean to wait for something to happen,
		// and with the last commit made, nothing might.
		missing := 1 - w.limiter.TokensAt(now)
		return nil, time.Duration(missing/float64(w.limiter.Limit())*float64(time.Second)) + time.Millisecond
	}
	w.pacer.observe(now, w.arrived)
	w.arrived = 0
	batch := w.plan.next(w.maxOps, maxTxnBytes, deletesOnly)
	if batch == nil {
		return nil, 0
	}
	w.started, w.first = now, time.Time{}
	w.flights[batch[0]] = oldest(batch)
	w.running++
	return batch, 0
}

// commit writes a batch. One that etcd refuses for its content is split until
// the operation at fault is alone; any other failure queues it whole again.
func (w *Writer) commit(ctx context.Context, batch []*operation) {
	w.mu.Lock()
	before := w.etcd.revision
	w.mu.Unlock()
	began := time.Now()
	resp, err := w.try(ctx, batch)
	w.observe(batch, began, err)
	switch {
	case err == nil && !resp.Succeeded:
		if err := w.fenced(ctx); err != nil {
			w.failed(batch, err)
			return
		}
		w.disproved(ctx, batch)
	case err == nil:
		w.succeeded(ctx, batch, resp.Header, before)
	case errors.Is(err, errPremature):
		w.failed(batch, nil)
	case errors.Is(err, rpctypes.ErrTooManyOps):
		w.mu.Lock()
		w.maxOps = smallerTxn(min(w.maxOps, len(batch)))
		w.mu.Unlock()
		w.failed(batch, nil)
	case atFault(err) && len(batch) > 1:
		w.giveBackLeases(batch)
		w.commit(ctx, batch[:len(batch)/2])
		w.commit(ctx, batch[len(batch)/2:])
	case atFault(err):
		w.refused(batch[0], err)
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		w.failed(batch, err)
		w.check(ctx)
	default:
		w.failed(batch, err)
	}
}

// smallerTxn is the number of operations to go on with after n were too many.
func smallerTxn(n int) int {
	if n > defaultTxnOps {
		return defaultTxnOps
	}
	return max(1, n/2)
}

// atFault says whether an error is about what was to be written, so that other
// operations may well succeed.
func atFault(err error) bool {
	switch code := rpctypes.ErrorDesc(err); {
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrEmptyKey):
		return true
	default:
		// The client's own limit on messages is no error of etcd's.
		return isTooLargeMessage(code)
	}
}

// try makes one transaction.
func (w *Writer) try(ctx context.Context, batch []*operation) (*outcome, error) {
	if err := w.assignLeases(ctx, batch); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	req, err := w.request(batch)
	if err != nil {
		return nil, err
	}
	return w.client.txn(ctx, req)
}

// request builds the transaction. All its parts come from three allocations.
func (w *Writer) request(batch []*operation) (*pb.TxnRequest, error) {
	var size int
	for _, op := range batch {
		size += len(op.scope.cfg.Prefix) + len(op.key)
	}
	keys := make([]byte, 0, size)
	ops := make([]pb.RequestOp, len(batch))
	puts := make([]pb.PutRequest, len(batch))
	req := &pb.TxnRequest{Success: make([]*pb.RequestOp, len(batch))}
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(batch, w.premature) {
		return nil, errPremature
	}
	var err error
	if req.Compare, err = w.options.Fence.compare(w.guard(batch)); err != nil {
		return nil, err
	}
	for i, op := range batch {
		begin := len(keys)
		keys = append(append(keys, op.scope.cfg.Prefix...), op.key...)
		key := keys[begin:len(keys):len(keys)]
		if op.delete {
			ops[i].Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}
		} else {
			puts[i] = pb.PutRequest{Key: key, Value: op.value, Lease: int64(w.leases.id(op.lease))}
			ops[i].Request = &pb.RequestOp_RequestPut{RequestPut: &puts[i]}
		}
		req.Success[i] = &ops[i]
	}
	return req, nil
}

// assignLeases gives each put the lease that its key is on, or one with room.
func (w *Writer) assignLeases(ctx context.Context, batch []*operation) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, op := range batch {
		if op.delete || !op.scope.cfg.Lease {
			continue
		}
		if committed := op.scope.records.get(op.key); committed != nil && w.leases.usable(committed.lease) {
			op.lease = committed.lease
			w.leases.hold(op.lease)
			continue
		}
		for op.lease = w.leases.take(); op.lease == 0; op.lease = w.leases.take() {
			w.mu.Unlock()
			id, err := w.leases.grant(ctx)
			w.mu.Lock()
			if err != nil {
				w.unassignLeases(batch)
				return err
			}
			w.keepLease(id)
		}
	}
	return nil
}

// keepLease makes a lease known and keeps it alive. The lock is held.
func (w *Writer) keepLease(id clientv3.LeaseID) leaseNumber {
	n, fresh := w.leases.add(id)
	if fresh {
		w.leases.keepAlive(w.keeping, n, id)
	}
	return n
}

func (w *Writer) unassignLeases(batch []*operation) {
	for _, op := range batch {
		w.leases.drop(op.lease)
		op.lease = 0
	}
}

func (w *Writer) giveBackLeases(batch []*operation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unassignLeases(batch)
}

// adopt is the record of a key found in etcd. A key that isn't on a lease as it
// should be (or is on one as it should not) counts as lost. The lock is held.
func (w *Writer) adopt(id int64, hash uint64, wantLease bool, flags recordFlags) record {
	r := record{hash: hash, flags: flags}
	if (id != 0) != wantLease {
		r.flags |= recordLost
		return r
	}
	if id != 0 {
		r.lease = w.keepLease(clientv3.LeaseID(id))
		w.leases.hold(r.lease)
	}
	return r
}

// succeeded takes note of a commit that was sent after the etcd was seen at
// revision before.
func (w *Writer) succeeded(ctx context.Context, batch []*operation, header *pb.ResponseHeader, before int64) {
	w.notice(ctx, header, before)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Commits++
	w.stats.Operations += uint64(len(batch))
	w.stats.LastError = ""
	w.retry = newRetry()
	w.notUntil = time.Time{}
	gone := make(map[*Scope][]string)
	for _, op := range batch {
		if op.delete {
			if known := op.scope.records.get(op.key); known != nil {
				w.leases.drop(known.lease)
				op.scope.records.delete(op.key)
			}
			continue
		}
		known, fresh := op.scope.records.put(op.key)
		if !fresh {
			w.leases.drop(known.lease)
		}
		w.noSpace = false
		r := record{hash: op.hash, lease: op.lease}
		if op.stale {
			r.flags = recordStale
		}
		if w.premature(op) { // it is where the keys were
			r.flags |= recordLost
			defer w.canaryAgain(op.key)
		}
		if op.lease != 0 && !w.leases.usable(op.lease) {
			// The lease was found lost while the commit was under way.
			r.flags |= recordLost | recordStale
			gone[op.scope] = append(gone[op.scope], op.key)
		}
		*known = r
		op.lease = 0
	}
	if !w.noSpace { // else deletes succeed, and puts don't
		if since, was := w.outage.over(); was {
			w.log.Info("Writing to etcd again", "failed-since", since)
		}
	}
	w.wrote(batch, header.Revision)
	w.queueRefills(gone)
	w.plan.succeeded(batch)
	w.ease()
}

// ease has Admit look again, since less may be pending. The lock is held.
func (w *Writer) ease() {
	close(w.eased)
	w.eased = make(chan struct{})
}

// failed queues a batch again. Without an error it is tried again at once.
func (w *Writer) failed(batch []*operation, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unassignLeases(batch)
	batch = slices.DeleteFunc(batch, func(op *operation) bool {
		if !w.premature(op) {
			return false
		}
		w.giveUp(op)
		return true
	})
	for _, op := range batch {
		if err != nil {
			op.scope.failures++
		}
	}
	w.plan.failed(batch)
	if err == nil {
		return
	}
	w.stats.Failures++
	w.noSpace = errors.Is(err, rpctypes.ErrNoSpace)
	level := slog.LevelDebug
	if w.outage.failed(time.Now(), err) {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "Writing to etcd failed, trying again", "operations", len(batch), "error", err)
	w.stats.LastError = err.Error()
	w.notUntil = time.Now().Add(w.retry.Step())
}

// refused sets an operation aside that etcd refuses by itself. It is tried
// again now and then: a permission may be granted, a limit raised.
func (w *Writer) refused(op *operation, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unassignLeases([]*operation{op})
	if op.scope.dropping {
		w.plan.abandon(op)
		w.ease()
		return
	}
	key := op.scope.cfg.Prefix + op.key
	if op.refused == nil {
		op.refused = &refusal{}
		w.log.Error("Etcd refuses a key, going on without it", "key", key, "bytes", len(op.value), "error", err)
	}
	w.stats.Failures++
	op.scope.failures++
	op.refused.reason = fmt.Errorf("writing %q: %w", key, err)
	delay := min(time.Second<<min(op.refused.times, 10), time.Minute)
	op.refused.times++
	w.plan.park(op, time.Now().Add(delay))
	w.ease()
}

// deletePrefix deletes a whole range, trying until ctx ends.
func (w *Writer) deletePrefix(ctx context.Context, prefix string) error {
	backoff := newRetry()
	for {
		tctx, cancel := context.WithTimeout(ctx, commitTimeout)
		err := w.deleteRange(tctx, prefix)
		cancel()
		if err == nil {
			return nil
		}
		if sleep(ctx, backoff.Step()) != nil || w.client.isClosed() {
			return err
		}
	}
}
