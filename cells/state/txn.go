// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"strings"

	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Txn is one transaction on all tables of this package. It is used by one
// goroutine, and what it has written is visible to others once, whole, after
// Commit. Until Commit or Abort no other Txn can begin: don't wait inside.
type Txn struct {
	w    *Writer
	wtxn statedb.WriteTxn
	// changes to the counts, by origin; and the origin used last, since a batch
	// is of one origin as a rule.
	changes     map[*Origin]*Counts
	last        *Origin
	lastChange  *Counts
	initialized []mark
	// uses are the changes to the Writer's; unused has the identities of which there
	// was none left at some point.
	uses   map[uint32]int32
	unused []uint32
	// gone is the change to the Writer's; left has the pods that may have no endpoint
	// any more.
	gone int
	left []podName
	key  [18]byte
}

// Commit makes the changes visible. It does nothing after Abort or Commit. What it
// costs beside the changes themselves is the same for one as for a thousand: the
// reason to keep batches whole (BenchmarkCommit, BenchmarkUpsertEndpointsChanged).
func (tx *Txn) Commit() {
	if tx.w == nil {
		return
	}
	for _, done := range tx.initialized {
		done.set(tx.wtxn)
	}
	// The next Txn may begin with the commit.
	tx.countUses()
	tx.dropGone()
	tx.wtxn.Commit()
	tx.w.count(tx.changes)
	if len(tx.initialized) > 0 {
		tx.w.marked(tx.initialized)
	}
	tx.w = nil
}

// Abort drops the changes. It does nothing after Commit, so it can be deferred.
func (tx *Txn) Abort() {
	tx.wtxn.Abort()
	tx.w = nil
}

// ReadTxn reads what the Txn itself has written; it ends with the Txn.
func (tx *Txn) ReadTxn() statedb.ReadTxn { return tx.wtxn }

// UpsertEndpoint makes or updates the claim of owner, within origin, on
// ep.Prefix. The result is true when another cluster holds the address, so that
// this claim waits. An invalid prefix claims nothing.
//
// Strings of ep are copied, those of owner are kept. A claim that is known
// already allocates nothing (BenchmarkUpsertEndpointsUnchanged).
func (tx *Txn) UpsertEndpoint(origin *Origin, owner Owner, ep wire.Endpoint) (conflict bool) {
	if !ep.Prefix.IsValid() {
		return false
	}
	old := tx.endpoint(ep.Prefix)
	if old != nil && old.isBy(origin, owner) && old.says(&ep) {
		return false
	}
	row := upsertClaim(old, &Claim{Origin: origin, Owner: owner, Endpoint: ep})
	tx.replaceEndpoint(old, row)
	return inConflict(row, origin)
}

// DeleteEndpoint gives up the claim of owner, within origin, on prefix. When it
// was the primary and others wait, the next one takes over in the same change
// of the row.
func (tx *Txn) DeleteEndpoint(origin *Origin, owner Owner, prefix netip.Prefix) {
	if old := tx.endpoint(prefix); old != nil {
		tx.replaceEndpoint(old, removeClaim(old, origin, owner))
	}
}

func (tx *Txn) endpoint(prefix netip.Prefix) *Endpoint {
	key := appendPrefixKey(tx.key[:0], prefix)
	row, _, _ := tx.w.tables.endpoints.Get(tx.wtxn, endpointByPrefix.QueryFromKey(key))
	return row
}

// replaceEndpoint writes the row that a function of claims.go made of old.
func (tx *Txn) replaceEndpoint(old, row *Endpoint) {
	if old == row {
		return
	}
	if old != nil {
		tx.countEndpoint(old, -1)
	}
	tx.use(old, row)
	tx.leave(old, row)
	if row == nil {
		tx.w.departures.note(old.Prefix())
		_, _, err := tx.w.tables.endpoints.Delete(tx.wtxn, old)
		must(err)
		return
	}
	tx.countEndpoint(row, 1)
	_, _, err := tx.w.tables.endpoints.Insert(tx.wtxn, row)
	must(err)
}

func (tx *Txn) countEndpoint(row *Endpoint, n int) {
	tx.change(row.Origin()).Endpoints += n
	for _, claim := range row.Waiting() {
		if inConflict(row, claim.Origin) {
			tx.change(claim.Origin).Conflicts += n
		}
	}
}

func (tx *Txn) change(origin *Origin) *Counts {
	if origin == tx.last && tx.lastChange != nil {
		return tx.lastChange
	}
	c, ok := tx.changes[origin]
	if !ok {
		if tx.changes == nil {
			tx.changes = map[*Origin]*Counts{}
		}
		c = &Counts{}
		tx.changes[origin] = c
	}
	tx.last, tx.lastChange = origin, c
	return c
}

// UpsertIdentity makes or updates an identity. The labels are copied
// (BenchmarkUpsertIdentities).
func (tx *Txn) UpsertIdentity(origin *Origin, identity wire.Identity) {
	old, _, found := tx.w.tables.identities.Get(tx.wtxn, IdentityByID(identity.ID))
	if found && old.Origin == origin && old.Labels == identity.Labels && !old.Leaving {
		return
	}
	identity.Labels = strings.Clone(identity.Labels)
	replaceOwned(tx, tx.w.tables.identities, old, &Identity{Identity: identity, Origin: origin})
}

// DeleteIdentity removes an identity of origin, whatever uses it.
func (tx *Txn) DeleteIdentity(origin *Origin, id uint32) {
	deleteOwned(tx, tx.w.tables.identities, origin, IdentityByID(id))
}

// UpsertNode makes or updates a node, whose slices and maps are kept. Whether it
// says anything new is found by reflection, in less time than the write of a row
// that is new takes (BenchmarkUpsertNodes).
func (tx *Txn) UpsertNode(origin *Origin, node wire.Node) {
	old, _, found := tx.w.tables.nodes.Get(tx.wtxn, NodeByName(node.Cluster, node.Name))
	if found && old.Origin == origin && reflect.DeepEqual(old.Node, node) {
		return
	}
	replaceOwned(tx, tx.w.tables.nodes, old, &Node{Node: node, Origin: origin})
}

// DeleteNode removes a node of origin.
func (tx *Txn) DeleteNode(origin *Origin, cluster, name string) {
	deleteOwned(tx, tx.w.tables.nodes, origin, NodeByName(cluster, name))
}

// UpsertService makes or updates a service, which is kept and must not be
// modified afterwards.
func (tx *Txn) UpsertService(origin *Origin, service *wire.Service) {
	old, _, found := tx.w.tables.services.Get(tx.wtxn,
		ServiceByName(service.Cluster, service.Namespace, service.Name))
	if found && old.Origin == origin && reflect.DeepEqual(old.Service, service) {
		return
	}
	replaceOwned(tx, tx.w.tables.services, old, &Service{Service: service, Origin: origin})
}

// DeleteService removes a service of origin.
func (tx *Txn) DeleteService(origin *Origin, cluster, namespace, name string) {
	deleteOwned(tx, tx.w.tables.services, origin, ServiceByName(cluster, namespace, name))
}

// UpsertServiceExport makes or updates a service export, which is kept and must
// not be modified afterwards.
func (tx *Txn) UpsertServiceExport(origin *Origin, export *wire.ServiceExport) {
	old, _, found := tx.w.tables.serviceExports.Get(tx.wtxn,
		ServiceExportByName(export.Cluster, export.Namespace, export.Name))
	if found && old.Origin == origin && reflect.DeepEqual(old.ServiceExport, export) {
		return
	}
	replaceOwned(tx, tx.w.tables.serviceExports, old, &ServiceExport{ServiceExport: export, Origin: origin})
}

// DeleteServiceExport removes a service export of origin.
func (tx *Txn) DeleteServiceExport(origin *Origin, cluster, namespace, name string) {
	deleteOwned(tx, tx.w.tables.serviceExports, origin, ServiceExportByName(cluster, namespace, name))
}

// DeleteOrigin removes every row, and for endpoints every claim, that origin
// has of one resource. It walks the whole table, identities excepted; a
// resource that has no table is passed over.
func (tx *Txn) DeleteOrigin(origin *Origin, resource wire.Resource) {
	t := &tx.w.tables
	switch resource {
	case wire.Endpoints:
		for row := range t.endpoints.All(tx.wtxn) {
			tx.replaceEndpoint(row, removeOrigin(row, origin))
		}
	case wire.Identities:
		deleteOwnedBy(tx, t.identities, origin, t.identities.List(tx.wtxn, IdentitiesByCluster(origin.Cluster)))
	case wire.Nodes:
		deleteOwnedBy(tx, t.nodes, origin, t.nodes.All(tx.wtxn))
	case wire.Services:
		deleteOwnedBy(tx, t.services, origin, t.services.All(tx.wtxn))
	case wire.ServiceExports:
		deleteOwnedBy(tx, t.serviceExports, origin, t.serviceExports.All(tx.wtxn))
	}
}

// UpsertNamespace makes or updates a namespace, whose maps are kept.
func (tx *Txn) UpsertNamespace(namespace Namespace) {
	old, _, found := tx.w.tables.namespaces.Get(tx.wtxn, NamespaceByName(namespace.Name))
	if found && maps.Equal(old.Annotations, namespace.Annotations) && maps.Equal(old.Labels, namespace.Labels) {
		return
	}
	row := namespace
	_, _, err := tx.w.tables.namespaces.Insert(tx.wtxn, &row)
	must(err)
}

// DeleteNamespace removes a namespace.
func (tx *Txn) DeleteNamespace(name string) {
	if old, _, found := tx.w.tables.namespaces.Get(tx.wtxn, NamespaceByName(name)); found {
		_, _, err := tx.w.tables.namespaces.Delete(tx.wtxn, old)
		must(err)
	}
}

// UpsertExport makes or updates the row of a resource.
func (tx *Txn) UpsertExport(export Export) {
	old, _, found := tx.w.tables.exports.Get(tx.wtxn, ExportByResource(export.Resource))
	if found && *old == export {
		return
	}
	_, _, err := tx.w.tables.exports.Insert(tx.wtxn, &export)
	must(err)
}

// UpdateRemoteCluster applies fn to a copy of the row (its maps are copies too,
// and never nil), which is new and has just its name when there is none yet.
func (tx *Txn) UpdateRemoteCluster(name string, fn func(*RemoteCluster)) {
	old, _, found := tx.w.tables.remoteClusters.Get(tx.wtxn, RemoteClusterByName(name))
	row := RemoteCluster{Name: name}
	if found {
		row = *old
	}
	row.Resources, row.Refused = cloneMap(row.Resources), cloneMap(row.Refused)
	fn(&row)
	row.Name = name
	if found && reflect.DeepEqual(old, &row) {
		return
	}
	_, _, err := tx.w.tables.remoteClusters.Insert(tx.wtxn, &row)
	must(err)
}

// UpdateDatastore applies fn to a copy of the one row, as UpdateRemoteCluster does.
func (tx *Txn) UpdateDatastore(fn func(*Datastore)) {
	old, _, found := tx.w.tables.datastore.Get(tx.wtxn, TheDatastore())
	var row Datastore
	if found {
		row = *old
	}
	row.Resources, row.Refused = cloneMap(row.Resources), cloneMap(row.Refused)
	fn(&row)
	if found && reflect.DeepEqual(old, &row) {
		return
	}
	_, _, err := tx.w.tables.datastore.Insert(tx.wtxn, &row)
	must(err)
}

func cloneMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// DeleteRemoteCluster removes a remote cluster's row.
func (tx *Txn) DeleteRemoteCluster(name string) {
	if old, _, found := tx.w.tables.remoteClusters.Get(tx.wtxn, RemoteClusterByName(name)); found {
		_, _, err := tx.w.tables.remoteClusters.Delete(tx.wtxn, old)
		must(err)
	}
}

// owned is a row that one source makes.
type owned interface {
	comparable
	origin() *Origin
	// countIn is the count that the row is part of.
	countIn(*Counts) *int
}

// replaceOwned writes row unless old (zero: there is none) is a stronger
// source's or another cluster's.
func replaceOwned[R owned](tx *Txn, table statedb.RWTable[R], old, row R) {
	var none R
	if old != none {
		if !mayReplace(old.origin(), row.origin()) {
			return
		}
		*old.countIn(tx.change(old.origin()))--
	}
	*row.countIn(tx.change(row.origin()))++
	_, _, err := table.Insert(tx.wtxn, row)
	must(err)
}

func deleteOwned[R owned](tx *Txn, table statedb.RWTable[R], origin *Origin, query statedb.Query[R]) {
	deleteOwnedBy(tx, table, origin, table.List(tx.wtxn, query))
}

func deleteOwnedBy[R owned](tx *Txn, table statedb.RWTable[R], origin *Origin, rows iter.Seq2[R, statedb.Revision]) {
	for row := range rows {
		if row.origin() != origin {
			continue
		}
		*row.countIn(tx.change(origin))--
		_, _, err := table.Delete(tx.wtxn, row)
		must(err)
	}
}

func (i *Identity) origin() *Origin      { return i.Origin }
func (n *Node) origin() *Origin          { return n.Origin }
func (s *Service) origin() *Origin       { return s.Origin }
func (s *ServiceExport) origin() *Origin { return s.Origin }

func (*Identity) countIn(c *Counts) *int      { return &c.Identities }
func (*Node) countIn(c *Counts) *int          { return &c.Nodes }
func (*Service) countIn(c *Counts) *int       { return &c.Services }
func (*ServiceExport) countIn(c *Counts) *int { return &c.ServiceExports }
