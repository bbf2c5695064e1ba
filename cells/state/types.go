// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package state holds Waggle's statedb tables, and the one Writer that modifies
// them. Whatever fills them (Kubernetes, the in-cluster cache, the mesh) goes
// through the Writer; whatever reads them sees Table[*T] and can't tell where a
// row came from.
//
//	types.go     the rows, and the Writer's contract
//	endpoint.go  the row of an endpoint, laid out to be small
//	intern.go    what many endpoints have in common
//	claims.go    which claim on an address wins; pure
//	writer.go    the Writer: origins, counts, initial sync
//	txn.go       one transaction
//	uses.go      which identities endpoints use, and those that wait to be deleted
//	workloads.go what pods say, and the last word of those that were deleted
//	tables.go    the tables and their indexes
//	columns.go   rows as text
//	cell.go      the wiring
//
// Rows are immutable once inserted. What repeats over many endpoints (cluster,
// namespace, service account, named ports) is kept once.
package state

import (
	"net/netip"
	"time"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Source ranks where a claim comes from, as upstream's pkg/source does. A
// lower value is stronger; what is local is never overridden by what is remote.
type Source uint8

const (
	// SourceLocal is this cluster, read from Kubernetes or from its in-cluster cache.
	SourceLocal Source = iota
	// SourceClusterMesh is a remote cluster.
	SourceClusterMesh
	// SourceOnDemand is an entry resolved after a miss; the weakest of all.
	SourceOnDemand
)

// Origin is where rows come from. One Origin is shared by all rows of a source,
// which keeps rows small; compare by pointer within one process.
type Origin struct {
	Cluster   string
	ClusterID uint32
	Source    Source
}

// Owner names the object that claims an address within its Origin. Object is
// the Kubernetes object ("slice/ns/name", "endpoint/ns/name") and is empty for
// a claim read from etcd, where the key itself is the claim. Pod distinguishes
// claims within one slice.
type Owner struct {
	Object string
	Pod    string
}

// Claim is one owner's statement about one address.
type Claim struct {
	Origin   *Origin
	Owner    Owner
	Endpoint wire.Endpoint
}

// Identity is a row of the table "identities", keyed by its number. Numbers of
// different clusters don't overlap.
type Identity struct {
	wire.Identity
	Origin *Origin
	// Leaving: its source no longer has it, and endpoints that are yet to go use it.
	Leaving bool
}

// Node is a row of the table "nodes", keyed by "cluster/name".
type Node struct {
	wire.Node
	Origin *Origin
}

// Service is a row of the table "services", keyed by "cluster/namespace/name".
// Local services that are not global are rows too (Shared is false).
type Service struct {
	*wire.Service
	Origin *Origin
}

// ServiceExport is a row of the table "service-exports", keyed by
// "cluster/namespace/name".
type ServiceExport struct {
	*wire.ServiceExport
	Origin *Origin
}

// Namespace is a row of the table "namespaces": local namespaces with the
// metadata that the filters read.
type Namespace struct {
	Name        string
	Annotations map[string]string
	Labels      map[string]string
}

// Workload is a row of the table "workloads": a local pod that says something about
// how far it is synced, be it malformed. Pods that say nothing have no row; nor has
// any while nobody asks for what pods say.
type Workload struct {
	Namespace, Pod string
	filter.Workload
	// Gone: the pod was deleted, and endpoints of it are yet to go. Until then its last
	// word counts.
	Gone bool
}

// Export is a row of the table "exports": what became of one resource of this
// cluster on the way into its etcd, and by which rules.
type Export struct {
	Resource wire.Resource
	// Mode and Region are the exporter's flags.
	Mode   filter.SyncMode
	Region string
	// Pushed and OnDemand count keys in etcd, NotGlobal the rows that are kept at
	// home by their namespace, and Refused those that can't be encoded.
	Pushed, OnDemand, NotGlobal, Refused int
	// Synced: all that the cluster had at the start is in etcd, canary included.
	Synced bool
}

// RemoteCluster is a row of the table "remote-clusters": what is known about
// the life of one remote cluster, for status, health and metrics.
type RemoteCluster struct {
	Name      string
	ClusterID uint32 // 0 until its config was read
	// Connected: its etcd answers. Ready: everything required is synced.
	Connected bool
	Ready     bool
	EtcdID    string // hexadecimal cluster ID of the etcd we are connected to
	Cached    bool   // the etcd has the cached layout (it is a KVStoreMesh's)
	Region    string
	// Canaries: it says of each resource when it is complete. ServiceExports: whether it
	// exports services of the MCS API; nil where it doesn't know of them.
	Canaries       bool
	ServiceExports *bool
	Resources      map[wire.Resource]ResourceState
	// Refused counts the values refused since start, by reason.
	Refused map[wire.Reason]uint64
	// Conflicts counts addresses this cluster claims and another one holds.
	Conflicts uint64
	// HeldBack counts the endpoints that wait for their identity now, and Late
	// those that were taken in without it since start.
	HeldBack int
	Late     uint64
	Failures uint64
	// LastError is about the connection; Problem is what else keeps the data
	// from being up to date: a prefix that can't be read, an etcd that doesn't
	// take what is written. Both are empty when all is well.
	LastError string
	Problem   string
	LastEvent time.Time // when data last arrived
	Since     time.Time // when Connected last changed
	// LastFailure is when the last of the Failures was.
	LastFailure time.Time
}

// RemoteClusterJob is the name of the job that follows a remote cluster, whose health says
// how that goes. The underscore, which no cluster's name has, keeps the health of "a" from
// being a prefix of that of "ab": health is removed by prefix.
func RemoteClusterJob(cluster string) string { return "remote-" + cluster + "_etcd" }

// ResourceState is the sync state of one resource of one remote cluster.
type ResourceState struct {
	Enabled bool // the source offers it
	Synced  bool // the source said that it is complete, and we have it all
	Entries int
	// Skipped counts what the source has and isn't taken, being regional in another
	// region.
	Skipped int
	// Lists counts how often it was listed since the start, or since the source changed
	// its layout. Each after the first took more than a reconnect: another etcd, history
	// that was compacted, or entries that were wanted again.
	Lists uint64
}

// Datastore is the one row of the table "datastore": where this cluster's own
// state comes from. Of the embedded row, what is said of a remote cluster holds
// for the in-cluster cache; Name is that of the cluster.
//
// With Kubernetes as the datastore Connected means that there is one to read
// from, and Ready that the lists were taken in.
type Datastore struct {
	RemoteCluster
	// Kind is the --datastore: "kubernetes" or "etcd".
	Kind string
	// Backend is what is read: the address of a replica of the cache, the API
	// server or a directory; empty while it is none.
	Backend string
	// Snapshot is what is kept of it on disk; zero if nothing is.
	Snapshot Snapshot
}

// DatastoreJob is the name of the job that follows an in-cluster cache, likewise.
const DatastoreJob = "follow-cache"

// Off says that there is none: an agent without Kubernetes has remote clusters alone.
func (d *Datastore) Off() bool { return d.Kind == "kubernetes" && d.Backend == "" }

// Snapshot says what an agent's snapshot of its cluster's state is, and what that of
// the process before was worth.
type Snapshot struct {
	// Created and Bytes are those of the file.
	Created time.Time
	Bytes   int64
	// Restored is how many entries the start had from it, and Started what became of
	// them: "resumed", or "relisted-" and why (etcd.Relisted).
	Restored int
	Started  map[wire.Resource]string
	// Discarded is why the one that there was at the start wasn't used.
	Discarded string
}

// Namespaces names the table of namespaces where a resource is asked for; it is
// never on the wire. Workloads likewise.
const (
	Namespaces wire.Resource = "namespaces"
	Workloads  wire.Resource = "workloads"
)

// Counts says how much of the tables one source holds.
type Counts struct {
	// Endpoints counts the addresses it holds as the primary.
	Endpoints, Identities, Nodes, Services, ServiceExports int
	// Conflicts counts its claims on addresses that another cluster holds.
	Conflicts int
}

// The Writer's contract (writer.go, txn.go):
//
//	NewWriter(db) (*Writer, error)             registers the tables; once per database
//	w.Tables() Tables                          to read them
//	w.ReadTxn()                                all tables as they are at one moment
//	w.Begin() *Txn                             locks all tables of this package; one at a time in the process
//	w.Origin(cluster, id, source) *Origin      interned
//	w.RegisterInitializer(name, resources...) func(*Txn)
//	w.InitializerDone(name, table) <-chan struct{}
//	w.Counts(cluster) Counts, w.CountByOrigin() map[*Origin]Counts
//
// A Txn is used by one goroutine and ends with Commit or Abort:
//
//	tx.UpsertEndpoint(origin, owner, wire.Endpoint) (conflict bool)
//	tx.DeleteEndpoint(origin, owner, prefix)
//	tx.UpsertIdentity(origin, wire.Identity)     tx.DeleteIdentity(origin, id), tx.HasIdentity(id)
//	tx.ReleaseIdentity(origin, id)               deletes it with the last claim that uses it
//	tx.UpsertNode(origin, wire.Node)             tx.DeleteNode(origin, cluster, name)
//	tx.UpsertService(origin, *wire.Service)      tx.DeleteService(origin, cluster, namespace, name)
//	tx.UpsertServiceExport(origin, *wire.ServiceExport)  tx.DeleteServiceExport(…)
//	tx.DeleteOrigin(origin, resource)            every row and claim of it
//	tx.UpsertNamespace(Namespace)                tx.DeleteNamespace(name)
//	tx.UpsertWorkload(Workload)                  tx.DeleteWorkload(namespace, pod)
//	tx.ReleaseWorkload(namespace, pod)           deletes it with the last endpoint of the pod
//	tx.UpsertExport(Export)
//	tx.UpdateRemoteCluster(name, func(*RemoteCluster))   copies the row, then applies fn; inserts if absent
//	tx.DeleteRemoteCluster(name)
//	tx.UpdateDatastore(func(*Datastore))         the same with the one row of the datastore
//	tx.ReadTxn()                                 reads that see what the Txn has written
//
// An upsert that changes nothing leaves the row (and its revision) alone, so
// that nothing downstream wakes up. A delete by somebody who is not the owner
// or origin is ignored. Batches stay whole: one watch response, one Txn.
//
// Initial sync of a source is expressed by statedb table initializers: the
// function that RegisterInitializer gives before start marks it done, and
// readers use Table.Initialized, or for one of several sources w.InitializerDone.

// PrefixOf is a single address as the prefix that keys the endpoints table.
func PrefixOf(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }
