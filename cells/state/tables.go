// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"net/netip"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Names of the tables, as `db/show` knows them.
const (
	EndpointTable      = "endpoints"
	IdentityTable      = "identities"
	NodeTable          = "nodes"
	ServiceTable       = "services"
	ServiceExportTable = "service-exports"
	NamespaceTable     = "namespaces"
	WorkloadTable      = "workloads"
	ExportTable        = "exports"
	RemoteClusterTable = "remote-clusters"
	DatastoreTable     = "datastore"
)

// Tables are the tables to read. Only the Writer can modify them.
type Tables struct {
	cell.Out

	Endpoints      statedb.Table[*Endpoint]
	Identities     statedb.Table[*Identity]
	Nodes          statedb.Table[*Node]
	Services       statedb.Table[*Service]
	ServiceExports statedb.Table[*ServiceExport]
	Namespaces     statedb.Table[*Namespace]
	Workloads      statedb.Table[*Workload]
	Exports        statedb.Table[*Export]
	RemoteClusters statedb.Table[*RemoteCluster]
	Datastore      statedb.Table[*Datastore]
}

// Indexes cost some 200 bytes a row in statedb (a leaf and its watch channel),
// as much again as an endpoint's row with its primary index. So there is one
// beyond the primary only where a reader asks for it often: endpoints have none
// by origin, and a drain walks the table instead (BenchmarkDeleteOrigin).
var (
	endpointByPrefix = statedb.Index[*Endpoint, netip.Prefix]{
		Name: "prefix",
		FromObject: func(e *Endpoint) index.KeySet {
			return index.NewKeySet(prefixKey(e.Prefix()))
		},
		FromKey:    prefixKey,
		FromString: parsePrefixKey,
		Unique:     true,
	}
	// endpointByPod has local rows only, as "namespace/pod": the exporter re-decides
	// the endpoints of a pod, or of a namespace, and what is remote is none of its
	// business.
	endpointByPod = statedb.Index[*Endpoint, string]{
		Name: "pod",
		FromObject: func(e *Endpoint) index.KeySet {
			s := e.shared.Value()
			if s.origin == nil || s.origin.Source != SourceLocal || s.namespace == "" {
				return index.KeySet{}
			}
			return index.NewKeySet(index.String(podKey(s.namespace, e.pod)))
		},
		FromKey:    index.String,
		FromString: index.FromString,
	}
	identityByID = statedb.Index[*Identity, uint32]{
		Name:       "id",
		FromObject: func(i *Identity) index.KeySet { return index.NewKeySet(index.Uint32(i.ID)) },
		FromKey:    index.Uint32,
		FromString: index.Uint32String,
		Unique:     true,
	}
	identityByCluster = statedb.Index[*Identity, string]{
		Name:       "cluster",
		FromObject: func(i *Identity) index.KeySet { return index.NewKeySet(index.String(i.Origin.Cluster)) },
		FromKey:    index.String,
		FromString: index.FromString,
	}
	nodeByName = statedb.Index[*Node, string]{
		Name:       "name",
		FromObject: func(n *Node) index.KeySet { return index.NewKeySet(index.String(n.Cluster + "/" + n.Name)) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	serviceByName = statedb.Index[*Service, string]{
		Name: "name",
		FromObject: func(s *Service) index.KeySet {
			return index.NewKeySet(index.String(objectKey(s.Cluster, s.Namespace, s.Name)))
		},
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	serviceExportByName = statedb.Index[*ServiceExport, string]{
		Name: "name",
		FromObject: func(s *ServiceExport) index.KeySet {
			return index.NewKeySet(index.String(objectKey(s.Cluster, s.Namespace, s.Name)))
		},
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	namespaceByName = statedb.Index[*Namespace, string]{
		Name:       "name",
		FromObject: func(n *Namespace) index.KeySet { return index.NewKeySet(index.String(n.Name)) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	workloadByPod = statedb.Index[*Workload, string]{
		Name: "pod",
		FromObject: func(w *Workload) index.KeySet {
			return index.NewKeySet(index.String(podKey(w.Namespace, w.Pod)))
		},
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	exportByResource = statedb.Index[*Export, string]{
		Name:       "resource",
		FromObject: func(e *Export) index.KeySet { return index.NewKeySet(index.String(string(e.Resource))) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	remoteClusterByName = statedb.Index[*RemoteCluster, string]{
		Name:       "name",
		FromObject: func(r *RemoteCluster) index.KeySet { return index.NewKeySet(index.String(r.Name)) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
	// datastoreByName has one row, which has one name.
	datastoreByName = statedb.Index[*Datastore, string]{
		Name:       "name",
		FromObject: func(*Datastore) index.KeySet { return index.NewKeySet(index.String(DatastoreTable)) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     true,
	}
)

// EndpointByPrefix asks for the row of exactly this prefix.
func EndpointByPrefix(prefix netip.Prefix) statedb.Query[*Endpoint] {
	return endpointByPrefix.Query(prefix)
}

// LocalEndpointsByNamespace asks for this cluster's endpoints in a namespace; it is
// for Table.Prefix.
func LocalEndpointsByNamespace(namespace string) statedb.Query[*Endpoint] {
	return endpointByPod.Query(podKey(namespace, ""))
}

// LocalEndpointsByPod asks for the endpoints of a pod of this cluster, one for each
// of its addresses.
func LocalEndpointsByPod(namespace, pod string) statedb.Query[*Endpoint] {
	return endpointByPod.Query(podKey(namespace, pod))
}

// IdentityByID asks for one identity.
func IdentityByID(id uint32) statedb.Query[*Identity] { return identityByID.Query(id) }

// IdentitiesByCluster asks for the identities of the cluster of this name.
func IdentitiesByCluster(cluster string) statedb.Query[*Identity] {
	return identityByCluster.Query(cluster)
}

// NodeByName asks for one node.
func NodeByName(cluster, name string) statedb.Query[*Node] {
	return nodeByName.Query(cluster + "/" + name)
}

// NodesByCluster asks for the nodes of a cluster; it is for Table.Prefix.
func NodesByCluster(cluster string) statedb.Query[*Node] { return nodeByName.Query(cluster + "/") }

// ServiceByName asks for one service of one cluster.
func ServiceByName(cluster, namespace, name string) statedb.Query[*Service] {
	return serviceByName.Query(objectKey(cluster, namespace, name))
}

// ServicesByCluster asks for the services of a cluster; it is for Table.Prefix.
func ServicesByCluster(cluster string) statedb.Query[*Service] {
	return serviceByName.Query(cluster + "/")
}

// ServicesByNamespace asks for the services in a namespace of a cluster; it is
// for Table.Prefix.
func ServicesByNamespace(cluster, namespace string) statedb.Query[*Service] {
	return serviceByName.Query(objectKey(cluster, namespace, ""))
}

// ServiceExportByName asks for one service export of one cluster.
func ServiceExportByName(cluster, namespace, name string) statedb.Query[*ServiceExport] {
	return serviceExportByName.Query(objectKey(cluster, namespace, name))
}

// ServiceExportsByNamespace asks for the service exports in a namespace of a
// cluster; it is for Table.Prefix.
func ServiceExportsByNamespace(cluster, namespace string) statedb.Query[*ServiceExport] {
	return serviceExportByName.Query(objectKey(cluster, namespace, ""))
}

// NamespaceByName asks for one namespace.
func NamespaceByName(name string) statedb.Query[*Namespace] { return namespaceByName.Query(name) }

// WorkloadByPod asks for what one pod says about itself.
func WorkloadByPod(namespace, pod string) statedb.Query[*Workload] {
	return workloadByPod.Query(podKey(namespace, pod))
}

// ExportByResource asks for the row of one resource.
func ExportByResource(resource wire.Resource) statedb.Query[*Export] {
	return exportByResource.Query(string(resource))
}

// RemoteClusterByName asks for one remote cluster.
func RemoteClusterByName(name string) statedb.Query[*RemoteCluster] {
	return remoteClusterByName.Query(name)
}

// TheDatastore asks for the one row of the table "datastore".
func TheDatastore() statedb.Query[*Datastore] { return datastoreByName.Query(DatastoreTable) }

func podKey(namespace, pod string) string { return namespace + "/" + pod }

func objectKey(cluster, namespace, name string) string {
	return cluster + "/" + namespace + "/" + name
}

// A prefix as a key is the family, the address in its own length and the number
// of bits. statedb's own form takes 17 bytes for either family, which costs an
// IPv4 row a larger allocation.
func appendPrefixKey(key []byte, p netip.Prefix) []byte {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return append(append(append(key, 4), a[:]...), uint8(p.Bits()))
	}
	a := p.Addr().As16()
	return append(append(append(key, 6), a[:]...), uint8(p.Bits()))
}

func prefixKey(p netip.Prefix) index.Key {
	if p.Addr().Is4() {
		return appendPrefixKey(make([]byte, 0, 6), p)
	}
	return appendPrefixKey(make([]byte, 0, 18), p)
}

// parsePrefixKey takes a prefix, or an address for the prefix that is just it.
func parsePrefixKey(s string) (index.Key, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return prefixKey(PrefixOf(addr)), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, fmt.Errorf("parsing %q as an address or a prefix: %w", s, err)
	}
	return prefixKey(p), nil
}

// tables are the tables to modify; they never leave the Writer.
type tables struct {
	endpoints      statedb.RWTable[*Endpoint]
	identities     statedb.RWTable[*Identity]
	nodes          statedb.RWTable[*Node]
	services       statedb.RWTable[*Service]
	serviceExports statedb.RWTable[*ServiceExport]
	namespaces     statedb.RWTable[*Namespace]
	workloads      statedb.RWTable[*Workload]
	exports        statedb.RWTable[*Export]
	remoteClusters statedb.RWTable[*RemoteCluster]
	datastore      statedb.RWTable[*Datastore]
}

func newTables(db *statedb.DB, prefix string) (t tables, err error) {
	if t.endpoints, err = statedb.NewTable(db, prefix+EndpointTable, endpointByPrefix, endpointByPod); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+EndpointTable, err)
	}
	if t.identities, err = statedb.NewTable(db, prefix+IdentityTable, identityByID, identityByCluster); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+IdentityTable, err)
	}
	if t.nodes, err = statedb.NewTable(db, prefix+NodeTable, nodeByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+NodeTable, err)
	}
	if t.services, err = statedb.NewTable(db, prefix+ServiceTable, serviceByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+ServiceTable, err)
	}
	if t.serviceExports, err = statedb.NewTable(db, prefix+ServiceExportTable, serviceExportByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+ServiceExportTable, err)
	}
	if t.namespaces, err = statedb.NewTable(db, prefix+NamespaceTable, namespaceByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+NamespaceTable, err)
	}
	if t.workloads, err = statedb.NewTable(db, prefix+WorkloadTable, workloadByPod); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+WorkloadTable, err)
	}
	if t.exports, err = statedb.NewTable(db, prefix+ExportTable, exportByResource); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+ExportTable, err)
	}
	if t.remoteClusters, err = statedb.NewTable(db, prefix+RemoteClusterTable, remoteClusterByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+RemoteClusterTable, err)
	}
	if t.datastore, err = statedb.NewTable(db, prefix+DatastoreTable, datastoreByName); err != nil {
		return t, fmt.Errorf("registering table %q: %w", prefix+DatastoreTable, err)
	}
	return t, nil
}

func (t *tables) all() []statedb.TableMeta {
	return []statedb.TableMeta{t.endpoints, t.identities, t.nodes, t.services,
		t.serviceExports, t.namespaces, t.workloads, t.exports, t.remoteClusters, t.datastore}
}
