// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/ipcache"
	ipcachemap "github.com/cilium/cilium/pkg/maps/ipcache"
	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"golang.org/x/time/rate"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// complaintInterval bounds how often endpoints that are not quite right are logged.
const complaintInterval = 10 * time.Second

// policyUpdater has policies computed anew; it is upstream's policy.Updater.
type policyUpdater interface{ TriggerPolicyUpdates(reason string) }

// endpoints brings the table of endpoints into the agent's ipcache, in its one job. It
// remembers nothing of what it has written: which entries are ours the ipcache says.
//
// It is guarded by BenchmarkEndpoints: 500,000 of them.
type endpoints struct {
	log     *slog.Logger
	db      *statedb.DB
	table   statedb.Table[*state.Endpoint]
	writer  *state.Writer // whose table it is
	options Options
	ipcache *ipcache.IPCache
	policy  policyUpdater
	// capacity is the health of the map's size, which is looked at once in an interval.
	capacity         cell.Health
	capacityInterval time.Duration
	// room is how many entries that map has, of all sources.
	room     int
	listener *listener
	limit    *rate.Limiter
	// delays is the job's own.
	delays delays

	mu sync.Mutex
	// done is the revision of the table up to which all is in the ipcache, and advanced
	// is closed with the next one.
	done     statedb.Revision
	advanced chan struct{}
	// synced is closed when all is in that the table had when it was complete as to this
	// cluster. Remote ones, of which any may be away, are waitFor's.
	synced chan struct{}
}

func newEndpoints(log *slog.Logger, db *statedb.DB, writer *state.Writer, options Options,
	ipc *ipcache.IPCache, policy policyUpdater, local localEndpoints) *endpoints {
	return &endpoints{
		log: log, db: db, table: writer.Tables().Endpoints, writer: writer, options: options, ipcache: ipc, policy: policy,
		listener: newListener(options.writes), limit: rate.NewLimiter(rate.Every(complaintInterval), 1),
		room: ipcachemap.MaxEntries, capacityInterval: capacityInterval,
		delays:   delays{local: local, seen: map[netip.Prefix]appearance{}},
		advanced: make(chan struct{}), synced: make(chan struct{}),
	}
}

// waitSynced waits until what the tables had of this cluster at first is in the ipcache.
func (e *endpoints) waitSynced(ctx context.Context) error {
	select {
	case <-e.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for endpoints to be in the ipcache: %w", ctx.Err())
	}
}

// waitFor waits until what the table has at a revision is in the ipcache.
func (e *endpoints) waitFor(ctx context.Context, revision statedb.Revision) error {
	for {
		e.mu.Lock()
		done, advanced := e.done, e.advanced
		e.mu.Unlock()
		if done >= revision {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run follows the table until ctx ends. One transaction of it is one batch.
func (e *endpoints) run(ctx context.Context, health cell.Health) error {
	wtxn := e.db.WriteTxn(e.table)
	changes, err := e.table.Changes(wtxn)
	wtxn.Commit()
	if err != nil {
		return fmt.Errorf("watching endpoints: %w", err)
	}
	e.ipcache.AddListener(e.listener)
	complete := ingest.LocalDone(e.writer, e.table)
	health.OK("Waiting for endpoints")
	for said := ""; ; {
		txn := e.db.ReadTxn()
		batch, changed := changes.Next(txn)
		b := newBatch(e)
		for change := range batch {
			b.apply(change.Object, change.Deleted)
			if ctx.Err() != nil {
				return nil
			}
		}
		for prefix := range e.listener.take() {
			if row, _, found := e.table.Get(txn, state.EndpointByPrefix(prefix)); found {
				b.put(row)
			}
		}
		b.end()

		e.mu.Lock()
		e.done = e.table.Revision(txn)
		close(e.advanced)
		e.advanced = make(chan struct{})
		e.mu.Unlock()
		if ingest.LocalComplete(txn, e.table) {
			complete = nil
			select {
			case <-e.synced:
			default:
				close(e.synced)
			}
		}
		initialized, whenInitialized := e.table.Initialized(txn)
		if initialized {
			whenInitialized = nil
		}
		if text := e.say(txn, initialized); text != said {
			said = text
			health.OK(text)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-whenInitialized:
		case <-complete:
		case <-e.listener.wake:
		}
	}
}

// say is what health says.
func (e *endpoints) say(txn statedb.ReadTxn, initialized bool) string {
	text := "Endpoints are in the ipcache"
	if !initialized {
		text = fmt.Sprintf("Endpoints are in the ipcache as far as they are known; waiting for %v", e.table.PendingInitializers(txn))
	}
	if n := e.listener.contested(); n > 0 {
		text += fmt.Sprintf("; of %d a stronger source says otherwise", n)
	}
	return text
}

// batch is one round of changes.
type batch struct {
	*endpoints
	// ports: named ports have changed that policies refer to.
	ports bool
	// problems are of entries that aren't quite right, the first few of them.
	problems []error
	count    int
}

const maxProblems = 3

func newBatch(e *endpoints) *batch { return &batch{endpoints: e} }

func (b *batch) apply(row *state.Endpoint, deleted bool) {
	if deleted || !b.options.wants(row.Origin()) {
		b.delays.gone(row.Prefix())
		b.remove(row.Prefix())
		return
	}
	b.put(row)
	b.delays.observe(row)
}

// put writes an entry. One that a stronger source holds is written when that lets go:
// the listener hears of it.
func (b *batch) put(row *state.Endpoint) {
	if !b.options.wants(row.Origin()) {
		return
	}
	entry, ok, problem := newEntry(row)
	if problem != nil {
		b.count++
		if len(b.problems) < maxProblems {
			b.problems = append(b.problems, problem)
		}
	}
	if !ok {
		b.remove(row.Prefix()) // what a row before has said no longer holds
		return
	}
	prefix := row.Prefix()
	b.listener.begin(prefix)
	defer b.listener.end()
	ports, err := b.upsert(entry)
	if held := (*ipcache.ErrOverwrite)(nil); errors.As(err, &held) && b.options.writes(held.ExistingSrc) {
		// It was a stronger source's of ours, as an address is that leaves this cluster.
		ports, err = b.handOver(prefix, entry, held.ExistingSrc)
	}
	b.ports = b.ports || ports
	b.listener.contest(prefix, err != nil)
}

func (b *batch) upsert(e entry) (ports bool, err error) {
	// Upstream's own watchers use this call, and the other API for identities that
	// aren't known beforehand.
	return b.ipcache.Upsert(e.ip, e.host, e.key, e.metadata, e.identity) //nolint:staticcheck // see above
}

// remove takes an entry away if it is ours.
func (b *batch) remove(prefix netip.Prefix) {
	b.listener.begin(prefix)
	defer b.listener.end()
	b.listener.contest(prefix, false)
	b.delete(keyOf(prefix))
}

func (b *batch) delete(ip string) {
	// Of what isn't there, or another's, upstream would warn.
	if id, ok := b.ipcache.LookupByIP(ip); ok && b.options.writes(id.Source) {
		ports := b.ipcache.Delete(ip, id.Source) //nolint:staticcheck // see upsert
		b.ports = b.ports || ports
	}
}

func (b *batch) end() {
	if b.ports {
		b.policy.TriggerPolicyUpdates("named ports of endpoints have changed")
	}
	if b.count > 0 && b.limit.Allow() {
		b.log.Warn("Leaving out named ports that aren't valid", "endpoints", b.count, "error", errors.Join(b.problems...))
	}
}
