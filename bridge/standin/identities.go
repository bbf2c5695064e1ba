// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	"github.com/cilium/cilium/pkg/k8s/identitybackend"
	"github.com/cilium/cilium/pkg/labels"
	"github.com/cilium/statedb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
)

// identities are this cluster's CiliumIdentities: those in the table, and those that
// this agent has created and that aren't there yet. Without the latter the allocator
// would think an identity gone that it has just made.
type identities struct {
	log    *slog.Logger
	db     *statedb.DB
	writer *state.Writer
	table  statedb.Table[*state.Identity]

	mu sync.Mutex
	// created are this agent's own that the table hasn't had yet, by number.
	created map[uint32]created
	feeds   map[*identityFeed]struct{}
}

func newIdentities(log *slog.Logger, db *statedb.DB, writer *state.Writer) *identities {
	return &identities{log: log, db: db, writer: writer, table: writer.Tables().Identities,
		created: map[uint32]created{}, feeds: map[*identityFeed]struct{}{}}
}

func (i *identities) name() string { return "ciliumidentities" }

func (i *identities) readTxn() statedb.ReadTxn { return i.db.ReadTxn() }

func (i *identities) await(ctx context.Context) error {
	return ingest.AwaitLocal(ctx, i.writer, i.table)
}

func (i *identities) open() (feed, error) {
	changes, err := follow(i.db, i.table)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	f := &identityFeed{identities: i, changes: changes, told: map[uint32]toldBy{}, signal: make(chan struct{}, 1)}
	for id, c := range i.created {
		f.news = append(f.news, news{id: id, object: c.object})
	}
	i.feeds[f] = struct{}{}
	return f, nil
}

// has says whether the table has an identity of this cluster.
func (i *identities) has(txn statedb.ReadTxn, id uint32) bool {
	row, _, ok := i.table.Get(txn, state.IdentityByID(id))
	return ok && ours(row)
}

// ours says whether a row is an identity that this cluster has. One that is leaving has
// been deleted, and is there for endpoints that are yet to go.
func ours(row *state.Identity) bool {
	return !row.Leaving && row.Origin != nil && row.Origin.Source == state.SourceLocal
}

// identityOf is a row as a CiliumIdentity. The table doesn't know when it was created,
// by which upstream chooses among several with the same labels: here it is the lowest
// number that is the oldest, so that all agents choose the same one.
func identityOf(row *state.Identity) *ciliumv2.CiliumIdentity {
	securityLabels := labels.NewLabelsFromSortedList(row.Labels).StringMap()
	return &ciliumv2.CiliumIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Name:              strconv.FormatUint(uint64(row.ID), 10),
			Labels:            identitybackend.SelectK8sLabels(securityLabels),
			CreationTimestamp: metav1.Time{Time: time.Unix(int64(row.ID), 0)},
		},
		SecurityLabels: securityLabels,
	}
}

// identityFeed is a feed of them.
type identityFeed struct {
	*identities
	changes statedb.ChangeIterator[*state.Identity]
	// told are those that the reader has, and from where.
	told   map[uint32]toldBy
	signal chan struct{}

	news []news // under identities.mu
}

// toldBy is from where a reader has an identity.
type toldBy uint8

const (
	byTable toldBy = iota + 1
	byCreation
)

// news is an identity that this agent has created, or one that has gone before the
// table had it.
type news struct {
	id     uint32
	object *ciliumv2.CiliumIdentity
	gone   bool
}

func (f *identityFeed) next(txn statedb.ReadTxn) (events []watch.Event, more <-chan struct{}) {
	changes, more := f.changes.Next(txn)
	f.mu.Lock()
	defer f.mu.Unlock()
	for change := range changes {
		row := change.Object
		told := f.told[row.ID]
		switch there := !change.Deleted && ours(row); {
		case there:
			delete(f.created, row.ID) // from now on it is the table that knows
			f.told[row.ID] = byTable
			event := watch.Event{Type: watch.Added, Object: identityOf(row)}
			if told != 0 {
				event.Type = watch.Modified
			}
			events = append(events, event)
		case told != 0:
			delete(f.told, row.ID)
			events = append(events, watch.Event{Type: watch.Deleted, Object: identityOf(row)})
			if told == byCreation {
				delete(f.created, row.ID) // it came to the table and went
			}
			// Otherwise it is an earlier one that went, and what was created under its
			// number is among the news.
		}
	}

	for _, n := range f.news {
		told := f.told[n.id]
		_, waits := f.created[n.id]
		switch {
		case n.gone && told == byCreation && !waits:
			delete(f.told, n.id)
			events = append(events, watch.Event{Type: watch.Deleted, Object: n.object})
		case !n.gone && told == 0 && waits:
			f.told[n.id] = byCreation
			events = append(events, watch.Event{Type: watch.Added, Object: n.object})
		}
	}
	f.news = nil
	return events, more
}

func (f *identityFeed) added() <-chan struct{} { return f.signal }

func (f *identityFeed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.feeds, f)
}
