// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/ipcache/bpf"
)

const (
	// queueLimit bounds the lookups that wait, at some 300 bytes each, and
	// interfaceLimit those of one interface. All remote sources come in by one or two
	// devices, and a lookup takes a millisecond or so: what waits behind 1,024 others
	// has waited for as long as the kernel takes to tell of it again.
	queueLimit     = 16384
	interfaceLimit = 1024
	// lookupBurst is how many lookups may begin at once, after a quiet time.
	lookupBurst = 256
	// batchLookups are asked for together: a key of each is a transaction that any etcd
	// takes; where it is two, the etcd's client makes two of them.
	batchLookups = 120
	// While one batch is under way another begins nextBatch after it, and so on up to
	// maxBatches: a near cluster has answered by then, and is asked for all that has come
	// meanwhile at once, for a fifth less processor time than two batches by turns; and of
	// one that is up to 320 ms away nobody waits for the round trip of others. A near one is
	// asked earlier for more than it is being asked for (room).
	nextBatch  = 5 * time.Millisecond
	maxBatches = 64
	// readPause is how long signals are left in the kernel's buffer, which has room for
	// those of much longer, while lookups are under way: most of what they tell of would wait
	// for those anyway, and to be woken for each takes a tenth of what a lookup costs.
	readPause = 300 * time.Microsecond
	// maxRepeats is how often a question is asked again since the address's row was
	// removed meanwhile. After that the answer is taken: its time to live is short.
	maxRepeats = 2
)

// Kernel is what sends the signals and knows what was used; *bpf.Kernel is it.
type Kernel interface {
	// SetCIDRs says which addresses are looked at: the whole wanted content. CIDRs are
	// those that are, which at first an earlier process has set.
	SetCIDRs(map[netip.Prefix]uint32) error
	CIDRs() (map[netip.Prefix]uint32, error)
	// Read hands over misses as they come, until ctx ends.
	Read(ctx context.Context, handle func([]bpf.Miss)) error
	// Follow has the use of addresses noted, and Forget no longer.
	Follow(addrs ...netip.Addr) error
	Forget(addrs ...netip.Addr) error
	// LastSeen is when each was used, CLOCK_MONOTONIC; 0 is never. EachSeen says the same
	// without making a map; the function must not use the Kernel.
	LastSeen() (map[netip.Addr]time.Duration, error)
	EachSeen(func(addr netip.Addr, at time.Duration)) error
	Stats() (bpf.Stats, error)
}

// settings are what an engine takes.
type settings struct {
	log     *slog.Logger
	config  Config
	db      *statedb.DB
	writer  *state.Writer
	table   statedb.RWTable[*Row]
	kernel  Kernel
	metrics *Metrics
	health  cell.Health
	local   string
	// maxConnectedClusters divides the identities among the clusters.
	maxConnectedClusters uint32
	clock                clock.Clock
	// monotonic is CLOCK_MONOTONIC, as the kernel reads it.
	monotonic    func() time.Duration
	breakerPause time.Duration
	// restoreTimeout and lostRetry are the constants; a test has its own.
	restoreTimeout, lostRetry time.Duration

	flagCIDRs []flagCIDR
	// ready is closed when the kernel can say what an earlier process has resolved, or
	// won't; nil is at once.
	ready <-chan struct{}
}

// engine answers misses: it takes them from the kernel, asks the resolvers, and puts
// what they know into the tables. Resolve and what Service asks are safe for concurrent use.
//
//	miss ─▶ queue ─▶ ask, for all of a cluster that wait ─▶ commit, one transaction for all
//	        (mu)     by then                                 that is answered (writing, then mu)
type engine struct {
	settings
	tables state.Tables
	chain  *chain
	limit  *rate.Limiter

	// writing is held while tables and entries are changed together, and is taken
	// before mu. mu is never held while a transaction is waited for: who brings misses
	// must not wait for a list of half a million endpoints.
	writing sync.Mutex
	// lastSeen is what one look at the uses of addresses has found, in a map that the next
	// one clears. It is used with writing held.
	lastSeen map[netip.Addr]time.Duration

	mu      sync.Mutex
	cidrs   *ownership
	entries *entries
	queue   *queue
	// asking are the lookups that have begun and aren't committed, and inFlight counts
	// those that wait for an answer, by cluster.
	asking   map[netip.Addr]*lookup
	inFlight map[uint32]inFlight
	// near are the clusters of which the last batch was answered within nextBatch.
	near     map[uint32]struct{}
	finished []*answered
	// ctx and lookups are set while the engine runs.
	ctx     context.Context
	lookups *errgroup.Group
	// throttled: a timer runs, after which the rate allows another lookup. held: one
	// runs, after which another batch may begin; it is one for all clusters, so that one of
	// them may wait for up to twice nextBatch.
	throttled, held bool
	restore         restore
	// complaints bounds the logs about the kernel, and refusals those about what was
	// refused.
	complaints *rate.Limiter
	refusals   *refusals
	// blindClusters are those whose nodes nobody knows a CIDR of, and excessive those
	// that claim too many.
	blindClusters []string
	excessive     []Excess

	answers  chan struct{} // there is something finished
	tokens   chan struct{} // a lookup, or a batch of them, may begin again
	expiring chan struct{} // there may be something earlier to expire
	changed  chan struct{} // a cluster is left alone, or no longer
	opened   chan struct{} // the kernel's side is, and knows of nothing yet
	settled  chan struct{} // closed when the first CIDRs of complete tables are in use
}

func newEngine(s settings, resolvers []IPCacheMissResolver) (*engine, error) {
	entries, err := newEntries(s.config.MaxEntries)
	if err != nil {
		return nil, err
	}
	if s.breakerPause == 0 {
		s.breakerPause = breakerPause
	}
	if s.restoreTimeout == 0 {
		s.restoreTimeout = restoreTimeout
	}
	if s.lostRetry == 0 {
		s.lostRetry = lostRetry
	}
	tables := s.writer.Tables()
	e := &engine{
		settings:   s,
		tables:     tables,
		limit:      rate.NewLimiter(rate.Limit(s.config.LookupRate), lookupBurst),
		cidrs:      decide(nil),
		entries:    entries,
		queue:      newQueue(queueLimit, interfaceLimit),
		asking:     map[netip.Addr]*lookup{},
		lastSeen:   map[netip.Addr]time.Duration{},
		inFlight:   map[uint32]inFlight{},
		near:       map[uint32]struct{}{},
		answers:    make(chan struct{}, 1),
		tokens:     make(chan struct{}, 1),
		expiring:   make(chan struct{}, 1),
		changed:    make(chan struct{}, 1),
		opened:     make(chan struct{}, 1),
		settled:    make(chan struct{}),
		restore:    newRestore(),
		complaints: newComplaints(),
		refusals:   newRefusals(s.log),
	}
	e.chain = &chain{
		tables:               tablesResolver{s.db, tables.Endpoints, tables.Identities},
		maxConnectedClusters: s.maxConnectedClusters,
		refused:              e.refusals.refuse,
	}
	for _, r := range resolvers {
		e.chain.others = append(e.chain.others, newGuarded(r, s.breakerPause, func() { wake(e.changed) }))
	}
	return e, nil
}

// wake tells whoever waits, and leaves it at that if it is told already.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// run commits answers until ctx ends, and waits for the lookups that are under way.
func (e *engine) run(ctx context.Context, health cell.Health) error {
	health.OK("Looking up what is missed")
	e.mu.Lock()
	e.ctx, e.lookups = ctx, &errgroup.Group{}
	e.pump()
	e.mu.Unlock()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-e.answers:
			e.commit()
		case <-e.tokens:
			e.mu.Lock()
			e.throttled, e.held = false, false
			e.pump()
			e.mu.Unlock()
		}
	}
	e.mu.Lock()
	lookups := e.lookups
	e.ctx, e.lookups = nil, nil
	e.mu.Unlock()
	return lookups.Wait() // they never fail
}

// handle takes in what the kernel tells, and returns when more is wanted.
func (e *engine) handle(misses []bpf.Miss) {
	if e.takeIn(misses) {
		time.Sleep(readPause)
	}
}

// takeIn says whether lookups are under way.
func (e *engine) takeIn(misses []bpf.Miss) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock.Now()
	for i := range misses {
		e.miss(&misses[i], now)
	}
	e.pump()
	return len(e.inFlight) > 0
}

// miss is called with mu held. Of an address that is known to be absent, or asked for
// already, it costs three accesses to maps at most.
func (e *engine) miss(m *bpf.Miss, now time.Time) {
	side := m.Side
	if side > bpf.SideSource {
		side = 0
	}
	owner, ok := e.cidrs.owner(m.Addr)
	if !ok || owner.trust == byLocal {
		// The kernel was told of another owner a moment ago.
		e.metrics.miss(side, OutcomeRefused, 1)
		return
	}
	if m.Identity != 0 && !mayCarry(m.Identity, owner.clusterID, e.maxConnectedClusters) {
		// Whatever sent that, the address may be worth asking for.
		e.metrics.foreignIdentity()
		m.Identity = 0
	}
	if n, ok := e.entries.negatives.Peek(m.Addr); ok && n.owner.sameCluster(owner) && n.swallows(m.Identity, now) {
		e.metrics.miss(side, n.outcome, 1)
		return
	}
	l := &lookup{
		question: Question{Cluster: owner.cluster, ClusterID: owner.clusterID, Addr: m.Addr, Identity: m.Identity},
		iface:    m.Interface, signalled: m.Time,
	}
	l.misses[side] = 1
	e.enqueue(l)
}

// enqueue has a lookup made, or joins it to one for the same address. It is called with
// mu held.
func (e *engine) enqueue(l *lookup) {
	if begun, ok := e.asking[l.question.Addr]; ok {
		switch {
		case begun.join(l, true):
		case begun.then == nil:
			begun.then = l
		default:
			begun.then.join(l, false)
		}
		return
	}
	if waits, ok := e.queue.get(l.question.Addr); ok {
		waits.join(l, false)
		return
	}
	if dropped := e.queue.push(l); dropped != nil {
		e.resolved(dropped, OutcomeDropped, fmt.Errorf("%w: too many lookups wait", ErrUnavailable))
	}
}

// inFlight is what one cluster is asked now, and when the last of it began.
type inFlight struct {
	batches, lookups int
	began            time.Time
}

// room is how many lookups of a cluster may begin now, together. What comes while a batch
// is under way waits for its end, or for nextBatch, and goes along with what else has come
// by then: so batches grow with the load, and in quiet nothing waits. Of a near cluster
// more begin at once than are under way, so that the first few of many don't hold up the
// others for their round trip; of a far one, of which two requests are under way at a time,
// all others would wait for that second one's. It is called with mu held.
func (e *engine) room(cluster uint32, now time.Time) int {
	under := e.inFlight[cluster]
	room := min(batchLookups, e.config.Concurrency-under.lookups)
	if under.batches == 0 {
		return room
	}
	wait := nextBatch - now.Sub(under.began)
	_, near := e.near[cluster]
	switch {
	case under.batches >= maxBatches:
		return 0
	case wait <= 0, near && min(room, e.queue.waiting[cluster]) > under.lookups:
		return room
	}
	e.hold(wait)
	return 0
}

// hold has it looked after that time what may begin.
func (e *engine) hold(wait time.Duration) {
	if !e.held {
		e.held = true
		time.AfterFunc(wait, func() { wake(e.tokens) })
	}
}

// pump begins the lookups that may begin now. It is called with mu held, whenever there
// may be more of them: something was queued, a cluster has room again, or a token came.
func (e *engine) pump() {
	if e.ctx == nil || e.throttled || e.queue.len() == 0 {
		return
	}
	type cluster struct {
		id   uint32
		name string // for the moment in which an ID goes from one cluster to another
	}
	batches, begun, rooms := map[cluster][]*lookup{}, map[uint32]int{}, map[uint32]int{}
	now := time.Now()
	for e.queue.len() > 0 {
		if missing := 1 - e.limit.TokensAt(now); missing > 0 {
			e.throttled = true
			pause := time.Duration(missing / float64(e.limit.Limit()) * float64(time.Second))
			time.AfterFunc(max(pause, time.Millisecond), func() { wake(e.tokens) })
			break
		}
		l, ok := e.queue.next(func(id uint32) bool {
			if _, asked := rooms[id]; !asked {
				rooms[id] = e.room(id, now) // before any of its lookups is taken
			}
			return begun[id] < rooms[id]
		})
		if !ok {
			break
		}
		if !e.isOwner(l.question) {
			e.resolved(l, OutcomeRefused, fmt.Errorf("%w: %s is no longer in a pod CIDR of cluster %q", ErrRefused, l.question.Addr, l.question.Cluster))
			continue
		}
		e.limit.AllowN(now, 1)
		e.asking[l.question.Addr] = l
		of := cluster{l.question.ClusterID, l.question.Cluster}
		batches[of] = append(batches[of], l)
		begun[of.id]++
	}
	ctx := e.ctx
	for of, batch := range batches {
		under := e.inFlight[of.id]
		e.inFlight[of.id] = inFlight{under.batches + 1, under.lookups + len(batch), now}
		if e.queue.waiting[of.id] > 0 {
			e.hold(nextBatch) // for which there was no room in this one
		}
		e.lookups.Go(func() error {
			e.ask(ctx, of.id, batch)
			return nil
		})
	}
}

func (e *engine) isOwner(q Question) bool {
	owner, ok := e.cidrs.owner(q.Addr)
	return ok && owner.cluster == q.Cluster && owner.clusterID == q.ClusterID
}

// ask finds out what there is, for commit to take in.
func (e *engine) ask(ctx context.Context, cluster uint32, batch []*lookup) {
	ctx, cancel := context.WithTimeout(ctx, e.config.LookupTimeout)
	defer cancel()
	e.writer.Departures().Watch(prefixesOf(batch)...) // until they are committed
	began := time.Now()
	answers := e.chain.resolve(ctx, batch)
	near := time.Since(began) < nextBatch && slices.ContainsFunc(answers, (*answered).isAnswered)

	e.mu.Lock()
	defer e.mu.Unlock()
	if near {
		e.near[cluster] = struct{}{}
	} else {
		delete(e.near, cluster)
	}
	under := e.inFlight[cluster]
	if under.batches--; under.batches == 0 {
		delete(e.inFlight, cluster)
	} else {
		under.lookups -= len(batch)
		e.inFlight[cluster] = under
	}
	e.finished = append(e.finished, answers...)
	wake(e.answers)
	e.pump()
}

func prefixesOf(batch []*lookup) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(batch))
	for i, l := range batch {
		prefixes[i] = state.PrefixOf(l.question.Addr)
	}
	return prefixes
}

// resolved tells whoever waits for a lookup. It is called with mu held.
func (e *engine) resolved(l *lookup, outcome Outcome, err error) {
	for side, n := range l.misses {
		e.metrics.miss(bpf.Side(side), outcome, n)
	}
	if outcome == OutcomeDropped {
		e.metrics.dropped()
	}
	for _, waiter := range l.waiters {
		waiter <- Resolution{Question: l.question, Outcome: outcome, Err: err}
	}
	e.restore.progress(l.question.Addr, outcome)
}

// Resolve asks for an address as a packet to it would, and waits for what comes of it.
// The error is why there is no entry for the address, or that of ctx.
func (e *engine) Resolve(ctx context.Context, addr netip.Addr) (Resolution, error) {
	addr = addr.Unmap().WithZone("")
	done := make(chan Resolution, 1)
	e.mu.Lock()
	owner, ok := e.cidrs.owner(addr)
	switch {
	case !ok:
		e.mu.Unlock()
		return Resolution{}, fmt.Errorf("%w: %s is in no pod CIDR that is one remote cluster's alone", ErrRefused, addr)
	case owner.trust == byLocal:
		e.mu.Unlock()
		return Resolution{}, fmt.Errorf("%w: %s is this cluster's", ErrRefused, addr)
	}
	e.enqueue(&lookup{
		question: Question{Cluster: owner.cluster, ClusterID: owner.clusterID, Addr: addr},
		// Not in one line with what is asked again, which may be long.
		iface: ^own, waiters: []chan<- Resolution{done},
	})
	e.pump()
	e.mu.Unlock()
	select {
	case r := <-done:
		return r, r.Err
	case <-ctx.Done():
		return Resolution{}, fmt.Errorf("resolving %s: %w", addr, context.Cause(ctx))
	}
}
