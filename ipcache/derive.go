// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/reconciler"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// roundSize bounds the changes of one round, and so how long a round keeps the
// reconciler from storing what it did. Everything that ordinarily arrives at
// once fits; only a first sync takes several rounds, during which the map is
// filled alongside (BenchmarkPipeline).
const roundSize = 50_000

// deriver keeps the table "ipcache" as endpoints and nodes want it. It is used
// by its one job only, and is the table's one source of rows.
type deriver struct {
	db        *statedb.DB
	table     statedb.RWTable[*Row]
	endpoints statedb.Table[*state.Endpoint]
	nodes     statedb.Table[*state.Node]
	rules     rules

	endpointChanges statedb.ChangeIterator[*state.Endpoint]
	nodeChanges     statedb.ChangeIterator[*state.Node]
	// synced marks the table as initialized; nil once that is done.
	synced func(statedb.WriteTxn)

	// known is what each node gives, to find what is gone when it changes.
	known map[string]knownNode
	// waiting has, for each prefix that more than one claims, all claims, the
	// winner first. It is small: addresses rarely have two owners.
	waiting map[Key][]claim

	byEndpoint, byNobody *owner
	stamp                int64
}

type knownNode struct {
	owner   *owner
	entries []nodeEntry
}

func newDeriver(db *statedb.DB, table statedb.RWTable[*Row], endpoints statedb.Table[*state.Endpoint],
	nodes statedb.Table[*state.Node], rules rules) *deriver {
	wtxn := db.WriteTxn(table)
	defer wtxn.Commit()
	return &deriver{
		db: db, table: table, endpoints: endpoints, nodes: nodes, rules: rules,
		synced:     table.RegisterInitializer(wtxn, "endpoints-and-nodes"),
		known:      map[string]knownNode{},
		waiting:    map[Key][]claim{},
		byEndpoint: &owner{"-"}, byNobody: &owner{"-"},
	}
}

// run derives until ctx ends.
func (d *deriver) run(ctx context.Context, health cell.Health) error {
	if err := d.watch(); err != nil {
		return err
	}
	d.start()
	nodes, contested := -1, -1
	for {
		wake, rest := d.step()
		// Health is a table too: it isn't written for each change of an endpoint.
		if nodes != len(d.known) || contested != len(d.waiting) {
			nodes, contested = len(d.known), len(d.waiting)
			health.OK(fmt.Sprintf("%d nodes, %d prefixes with several owners", nodes, contested))
		}
		if rest && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake.endpoints:
		case <-wake.nodes:
		case <-wake.endpointsSynced:
		case <-wake.nodesSynced:
		}
	}
}

// watch begins to follow the sources.
func (d *deriver) watch() (err error) {
	wtxn := d.db.WriteTxn(d.endpoints, d.nodes)
	defer wtxn.Commit()
	if d.endpointChanges, err = d.endpoints.Changes(wtxn); err != nil {
		return fmt.Errorf("watching endpoints: %w", err)
	}
	if d.nodeChanges, err = d.nodes.Changes(wtxn); err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	return nil
}

// wakeups are closed when there is something to do again.
type wakeups struct {
	endpoints, nodes, endpointsSynced, nodesSynced <-chan struct{}
}

// step takes one snapshot of the sources and makes one write transaction of
// what changed. It says whether it left some for the next.
func (d *deriver) step() (wake wakeups, rest bool) {
	txn := d.db.ReadTxn()
	var (
		endpoints iter.Seq2[statedb.Change[*state.Endpoint], statedb.Revision]
		nodes     iter.Seq2[statedb.Change[*state.Node], statedb.Revision]
	)
	endpoints, wake.endpoints = d.endpointChanges.Next(txn)
	nodes, wake.nodes = d.nodeChanges.Next(txn)
	endpointsSynced, endpointsInit := d.endpoints.Initialized(txn)
	nodesSynced, nodesInit := d.nodes.Initialized(txn)
	// Once initialized these channels stay closed and must not wake us.
	if !endpointsSynced {
		wake.endpointsSynced = endpointsInit
	}
	if !nodesSynced {
		wake.nodesSynced = nodesInit
	}
	return wake, d.round(nodes, endpoints, endpointsSynced && nodesSynced)
}

// start adds the entries that depend on nothing.
func (d *deriver) start() {
	wtxn := d.db.WriteTxn(d.table)
	defer wtxn.Commit()
	d.nextStamp()
	for _, entry := range d.rules.outside() {
		d.put(wtxn, entry.Key, claim{d.byNobody, state.SourceLocal, kindOutside, entry.Value})
	}
}

// round applies changes and says whether it left some for the next. Nodes come
// first: an endpoint without its node can't be reached.
func (d *deriver) round(nodes iter.Seq2[statedb.Change[*state.Node], statedb.Revision],
	endpoints iter.Seq2[statedb.Change[*state.Endpoint], statedb.Revision], synced bool) (rest bool) {
	var wtxn statedb.WriteTxn
	write := func() statedb.WriteTxn {
		if wtxn == nil {
			wtxn = d.db.WriteTxn(d.table)
			d.nextStamp()
		}
		return wtxn
	}
	defer func() {
		if wtxn != nil {
			wtxn.Commit()
		}
	}()

	budget := roundSize
	for change := range nodes {
		if change.Deleted {
			d.dropNode(write(), change.Object)
		} else {
			d.putNode(write(), change.Object)
		}
		if budget--; budget == 0 {
			return true
		}
	}
	for change := range endpoints {
		d.changeEndpoint(write(), change.Object, change.Deleted)
		if budget--; budget == 0 {
			return true
		}
	}
	if synced && d.synced != nil {
		d.synced(write())
		d.synced = nil
	}
	return false
}

// nextStamp is the time of a round. It never repeats: by it the reconciler tells
// a row it is about to store the status of from a later change of that row.
func (d *deriver) nextStamp() {
	d.stamp = max(time.Now().UnixNano(), d.stamp+1)
}

func (d *deriver) changeEndpoint(wtxn statedb.WriteTxn, ep *state.Endpoint, deleted bool) {
	entry, ok := d.rules.endpoint(ep)
	switch {
	case !ok: // no such prefix can be in the map
	case deleted:
		d.drop(wtxn, entry.Key, d.byEndpoint)
	default:
		d.put(wtxn, entry.Key, claim{d.byEndpoint, ep.Origin().Source, kindEndpoint, entry.Value})
	}
}

// putNode adds what the node gives and removes what it gave before and doesn't
// any more.
func (d *deriver) putNode(wtxn statedb.WriteTxn, node *state.Node) {
	name := nodeName(&node.Node)
	old, ok := d.known[name]
	if !ok {
		old.owner = &owner{name}
	}
	entries := d.rules.node(&node.Node)
	for _, entry := range entries {
		d.put(wtxn, entry.Key, claim{old.owner, node.Origin.Source, entry.kind, entry.Value})
	}
	for _, entry := range old.entries {
		if !hasKey(entries, entry.Key) {
			d.drop(wtxn, entry.Key, old.owner)
		}
	}
	d.known[name] = knownNode{old.owner, entries}
}

func (d *deriver) dropNode(wtxn statedb.WriteTxn, node *state.Node) {
	name := nodeName(&node.Node)
	known, ok := d.known[name]
	if !ok {
		return
	}
	for _, entry := range known.entries {
		d.drop(wtxn, entry.Key, known.owner)
	}
	delete(d.known, name)
}

// put makes a claim, or changes what its owner claimed of the prefix before.
func (d *deriver) put(wtxn statedb.WriteTxn, key Key, c claim) {
	row, _, ok := d.table.Get(wtxn, ByPrefix(key.Prefix()))
	if !ok {
		d.insert(wtxn, &Row{Entry: Entry{Key: key}}, c)
		return
	}
	claims, ok := d.waiting[key]
	if !ok {
		if row.owner == c.owner {
			d.replace(wtxn, row, c)
			return
		}
		claims = []claim{row.claim()}
	}
	claims = withClaim(claims, c)
	d.waiting[key] = claims
	d.replace(wtxn, row, claims[0])
}

// drop removes an owner's claim, if it has one.
func (d *deriver) drop(wtxn statedb.WriteTxn, key Key, by *owner) {
	row, _, ok := d.table.Get(wtxn, ByPrefix(key.Prefix()))
	if !ok {
		return
	}
	claims, ok := d.waiting[key]
	if !ok {
		if row.owner == by {
			d.delete(wtxn, row)
		}
		return
	}
	claims = withoutClaim(claims, by)
	if len(claims) > 1 {
		d.waiting[key] = claims
	} else {
		delete(d.waiting, key)
	}
	d.replace(wtxn, row, claims[0])
}

// replace gives a row another claim. A claim that leaves the value as it is
// doesn't go to the map again.
func (d *deriver) replace(wtxn statedb.WriteTxn, row *Row, c claim) {
	switch old := row.claim(); {
	case old == c:
	case old.value == c.value:
		// The row can be replaced while the reconciler works on it: it finds its
		// stamp in the new row, and stores the outcome there.
		_, _, _ = d.table.Insert(wtxn, row.with(c))
	default:
		d.insert(wtxn, row, c)
	}
}

func (d *deriver) insert(wtxn statedb.WriteTxn, row *Row, c claim) {
	row = row.with(c)
	row.status, row.failure, row.at = reconciler.StatusKindPending, nil, d.stamp
	// Insert fails only on a table that the transaction doesn't hold, or after
	// it was committed; neither can be here.
	_, _, _ = d.table.Insert(wtxn, row)
}

func (d *deriver) delete(wtxn statedb.WriteTxn, row *Row) {
	_, _, _ = d.table.Delete(wtxn, row)
}

func nodeName(n *wire.Node) string { return n.Cluster + "/" + n.Name }

func hasKey(entries []nodeEntry, key Key) bool {
	for i := range entries {
		if entries[i].Key == key {
			return true
		}
	}
	return false
}
