// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"

	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// writeOneOfEach makes a row in every table but the one of remote clusters; its
// values are equal, and share no memory, from call to call.
func writeOneOfEach(tx *Txn, origin *Origin) {
	owner := Owner{Object: "endpoint/default/web"}
	ep := endpoint(ip, 131173, "web")
	ep.NamedPorts = []wire.NamedPort{{Name: "http", Port: 80, Protocol: "TCP"}}
	ep.Metadata = "m"
	tx.UpsertEndpoint(origin, owner, ep)
	tx.UpsertIdentity(origin, wire.Identity{ID: 131173, Labels: "k8s:app=web;"})
	tx.UpsertNode(origin, wire.Node{
		Name: "n1", Cluster: "red",
		Addresses: []wire.NodeAddress{{Type: "InternalIP", IP: netip.MustParseAddr("192.168.0.1")}},
		PodCIDRs4: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Labels:    map[string]string{"a": "b"},
	})
	tx.UpsertService(origin, &wire.Service{
		Cluster: "red", Namespace: "default", Name: "web", Shared: true,
		Labels: map[string]string{"a": "b"},
	})
	tx.UpsertServiceExport(origin, &wire.ServiceExport{Cluster: "red", Namespace: "default", Name: "web"})
	tx.UpsertNamespace(Namespace{Name: "default", Labels: map[string]string{"a": "b"}})
	tx.UpsertWorkload(Workload{Namespace: "default", Pod: "web", Workload: filter.Workload{Sync: true, SyncFrom: filter.AsLabel}})
	tx.UpsertExport(Export{Resource: wire.Endpoints, Mode: filter.SyncOptIn, Pushed: 1})
}

// revisions are those of all tables.
func (f *fixture) revisions() (revs []statedb.Revision) {
	txn := f.db.ReadTxn()
	for _, meta := range f.w.metas {
		revs = append(revs, meta.Revision(txn))
	}
	return revs
}

func TestUnchangedUpsertLeavesRevision(t *testing.T) {
	f := newFixture(t)
	connected := func(r *RemoteCluster) {
		r.Connected = true
		r.Refused[wire.ReasonMalformed] = 1
		r.Resources[wire.Nodes] = ResourceState{Enabled: true}
	}
	write := func(tx *Txn) {
		writeOneOfEach(tx, f.red)
		tx.UpdateRemoteCluster("red", connected)
		tx.UpdateDatastore(func(d *Datastore) { connected(&d.RemoteCluster) })
	}
	f.do(write)
	before := f.revisions()
	require.NotContains(t, before, statedb.Revision(0), "every table has a row")
	f.do(write)
	require.Equal(t, before, f.revisions())

	f.upsert(f.blue, Owner{}, endpoint(ip, 196709, "b"))
	before = f.revisions()
	f.upsert(f.blue, Owner{}, endpoint(ip, 196709, "b"))
	require.Equal(t, before, f.revisions(), "what waits is unchanged as well")
}

func TestChangedUpsertMovesRevision(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *Txn) { writeOneOfEach(tx, f.red) })
	for name, change := range map[string]func(tx *Txn){
		"identity": func(tx *Txn) { tx.UpsertIdentity(f.red, wire.Identity{ID: 131173, Labels: "k8s:app=db;"}) },
		"node":     func(tx *Txn) { tx.UpsertNode(f.red, wire.Node{Name: "n1", Cluster: "red"}) },
		"service": func(tx *Txn) {
			tx.UpsertService(f.red, &wire.Service{Cluster: "red", Namespace: "default", Name: "web"})
		},
		"export": func(tx *Txn) {
			tx.UpsertServiceExport(f.red, &wire.ServiceExport{Cluster: "red", Namespace: "default", Name: "web", SessionAffinity: "ClientIP"})
		},
		"namespace": func(tx *Txn) { tx.UpsertNamespace(Namespace{Name: "default"}) },
	} {
		t.Run(name, func(t *testing.T) {
			before := f.revisions()
			f.do(change)
			require.NotEqual(t, before, f.revisions())
		})
	}
}

func TestCountsAndDeleteOrigin(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *Txn) { writeOneOfEach(tx, f.red) })
	one := Counts{Endpoints: 1, Identities: 1, Nodes: 1, Services: 1, ServiceExports: 1}
	require.Equal(t, one, f.w.Counts("red"))
	require.Equal(t, map[*Origin]Counts{f.red: one}, f.w.CountByOrigin())

	f.do(func(tx *Txn) {
		for _, resource := range wire.Resources {
			tx.DeleteOrigin(f.blue, resource)
		}
	})
	require.Equal(t, one, f.w.Counts("red"), "another source's rows stay")

	f.do(func(tx *Txn) {
		for _, resource := range wire.Resources {
			tx.DeleteOrigin(f.red, resource)
		}
	})
	require.Empty(t, f.w.CountByOrigin())
	txn := f.db.ReadTxn()
	require.Zero(t, f.tables.Endpoints.NumObjects(txn))
	require.Zero(t, f.tables.Identities.NumObjects(txn))
	require.Zero(t, f.tables.Nodes.NumObjects(txn))
	require.Zero(t, f.tables.Services.NumObjects(txn))
	require.Zero(t, f.tables.ServiceExports.NumObjects(txn))
	require.Equal(t, 1, f.tables.Namespaces.NumObjects(txn))
}

func TestDeleteByOriginOnly(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *Txn) { writeOneOfEach(tx, f.red) })
	remove := func(origin *Origin) func(tx *Txn) {
		return func(tx *Txn) {
			tx.DeleteIdentity(origin, 131173)
			tx.DeleteNode(origin, "red", "n1")
			tx.DeleteService(origin, "red", "default", "web")
			tx.DeleteServiceExport(origin, "red", "default", "web")
		}
	}
	before := f.revisions()
	f.do(remove(f.blue))
	require.Equal(t, before, f.revisions())
	f.do(remove(f.red))
	require.Equal(t, map[*Origin]Counts{f.red: {Endpoints: 1}}, f.w.CountByOrigin())
	f.do(func(tx *Txn) { tx.DeleteNamespace("default"); tx.DeleteNamespace("none") })
	require.Zero(t, f.tables.Namespaces.NumObjects(f.db.ReadTxn()))
}

func TestWeakerSourceDoesNotReplace(t *testing.T) {
	f := newFixture(t)
	identity := func(labels string) wire.Identity { return wire.Identity{ID: 131173, Labels: labels} }
	get := func() *Identity {
		row, _, found := f.tables.Identities.Get(f.db.ReadTxn(), IdentityByID(131173))
		require.True(t, found)
		return row
	}
	f.do(func(tx *Txn) { tx.UpsertIdentity(f.redResolved, identity("resolved")) })
	f.do(func(tx *Txn) { tx.UpsertIdentity(f.red, identity("pushed")) })
	require.Equal(t, "pushed", get().Labels)
	require.Equal(t, map[*Origin]Counts{f.red: {Identities: 1}}, f.w.CountByOrigin())
	f.do(func(tx *Txn) { tx.UpsertIdentity(f.redResolved, identity("resolved")) })
	f.do(func(tx *Txn) { tx.UpsertIdentity(f.blue, identity("other")) })
	require.Equal(t, "pushed", get().Labels)

	renumbered := f.w.Origin("red", 9, SourceClusterMesh)
	f.do(func(tx *Txn) { tx.UpsertIdentity(renumbered, identity("renumbered")) })
	require.Equal(t, "renumbered", get().Labels, "the same cluster under another ID is the newer truth")
}

func TestOriginIsInterned(t *testing.T) {
	f := newFixture(t)
	require.Same(t, f.red, f.w.Origin("red", 2, SourceClusterMesh))
	require.NotSame(t, f.red, f.w.Origin("red", 3, SourceClusterMesh))
}

func TestOneWriterForADatabase(t *testing.T) {
	f := newFixture(t)
	_, err := NewWriter(f.db)
	require.ErrorIs(t, err, statedb.ErrDuplicateTable)
}

func TestInitializer(t *testing.T) {
	f := newFixture(t)
	slow := f.w.RegisterInitializer("slow", wire.Endpoints, Namespaces)
	all := f.w.RegisterInitializer("all", append(wire.Resources, Namespaces)...)
	initialized := func(table statedb.TableMeta) bool {
		done, _ := table.Initialized(f.db.ReadTxn())
		return done
	}
	// As one who waits sees it.
	done := func(name string, table statedb.TableMeta) bool {
		select {
		case <-f.w.InitializerDone(name, table):
			require.NotContains(t, table.PendingInitializers(f.db.ReadTxn()), name)
			return true
		default:
			return false
		}
	}
	require.False(t, initialized(f.tables.Endpoints))
	require.False(t, initialized(f.tables.Nodes))
	require.False(t, initialized(f.tables.Namespaces))
	require.True(t, done("slow", f.tables.Nodes), "it has none of that name")
	earlier := f.w.InitializerDone("all", f.tables.Nodes)

	tx := f.w.Begin()
	all(tx)
	tx.Abort()
	require.False(t, initialized(f.tables.Nodes), "an aborted Txn marks nothing")
	require.False(t, done("all", f.tables.Nodes))

	f.do(all)
	f.do(all)
	<-earlier
	require.True(t, done("all", f.tables.Nodes))
	require.True(t, done("all", f.tables.Endpoints))
	require.False(t, done("slow", f.tables.Endpoints))
	require.True(t, initialized(f.tables.Nodes))
	require.True(t, initialized(f.tables.Services))
	require.False(t, initialized(f.tables.Endpoints))
	require.Equal(t, []string{"slow"}, f.tables.Endpoints.PendingInitializers(f.db.ReadTxn()))
	f.do(slow)
	require.True(t, done("slow", f.tables.Endpoints))
	require.True(t, initialized(f.tables.Endpoints))
	require.True(t, initialized(f.tables.Namespaces))
}

func TestQueries(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *Txn) {
		for i, name := range []string{"red", "redder"} {
			origin := f.w.Origin(name, uint32(10+i), SourceClusterMesh)
			tx.UpsertIdentity(origin, wire.Identity{ID: uint32(1000 + i)})
			tx.UpsertNode(origin, wire.Node{Cluster: name, Name: "n"})
			tx.UpsertService(origin, &wire.Service{Cluster: name, Namespace: "a", Name: "s"})
			tx.UpsertService(origin, &wire.Service{Cluster: name, Namespace: "ab", Name: "s"})
			tx.UpsertServiceExport(origin, &wire.ServiceExport{Cluster: name, Namespace: "a", Name: "s"})
			tx.UpsertServiceExport(origin, &wire.ServiceExport{Cluster: name, Namespace: "ab", Name: "s"})
		}
		remote, web, db := endpoint("10.0.0.1", 1, "r"), endpoint("10.0.0.2", 2, "web"), endpoint("fd00::1", 3, "db")
		db.Namespace = "default2"
		tx.UpsertEndpoint(f.red, Owner{}, remote)
		tx.UpsertEndpoint(f.local, Owner{}, web)
		tx.UpsertEndpoint(f.local, Owner{}, db)
	})
	txn := f.db.ReadTxn()
	require.Len(t, statedb.Collect(f.tables.Identities.List(txn, IdentitiesByCluster("red"))), 1)
	require.Len(t, statedb.Collect(f.tables.Nodes.Prefix(txn, NodesByCluster("red"))), 1)
	require.Len(t, statedb.Collect(f.tables.Services.Prefix(txn, ServicesByNamespace("red", "a"))), 1)
	require.Len(t, statedb.Collect(f.tables.ServiceExports.Prefix(txn, ServiceExportsByNamespace("red", "a"))), 1)

	locals := statedb.Collect(f.tables.Endpoints.Prefix(txn, LocalEndpointsByNamespace("default")))
	require.Len(t, locals, 1)
	require.Equal(t, "web", locals[0].Pod())

	f.upsert(f.local, Owner{}, endpoint("fd00::1", 3, "db"))
	txn = f.db.ReadTxn()
	require.Len(t, statedb.Collect(f.tables.Endpoints.Prefix(txn, LocalEndpointsByNamespace("default"))), 2)
	require.Empty(t, statedb.Collect(f.tables.Endpoints.Prefix(txn, LocalEndpointsByNamespace("default2"))))
}

// TestRowsKeepNoBuffer writes from strings in one buffer, as a decoder that
// doesn't copy gives them, and overwrites it.
func TestRowsKeepNoBuffer(t *testing.T) {
	f := newFixture(t)
	buf := []byte("default webby   k8s:a=b;http    TCP     ")
	text := func(i int) string { return unsafe.String(&buf[i*8], 8) }
	ep := wire.Endpoint{Prefix: prefix(ip), Namespace: text(0), Pod: text(1), ServiceAccount: text(0), Metadata: text(1),
		NamedPorts: []wire.NamedPort{{Name: text(3), Port: 80, Protocol: text(4)}}}
	f.do(func(tx *Txn) {
		tx.UpsertEndpoint(f.red, Owner{}, ep)
		tx.UpsertEndpoint(f.blue, Owner{}, ep)
		tx.UpsertIdentity(f.red, wire.Identity{ID: 1, Labels: text(2)})
	})
	clear(buf)
	row := f.row(ip)
	want := wire.Endpoint{Prefix: prefix(ip), Namespace: "default ", Pod: "webby   ", ServiceAccount: "default ",
		Metadata: "webby   ", NamedPorts: []wire.NamedPort{{Name: "http    ", Port: 80, Protocol: "TCP     "}}}
	require.Equal(t, want, row.Endpoint())
	require.Equal(t, want, row.Waiting()[0].Endpoint)
	identity, _, _ := f.tables.Identities.Get(f.db.ReadTxn(), IdentityByID(1))
	require.Equal(t, "k8s:a=b;", identity.Labels)
}

func TestUpdateRemoteClusterCopies(t *testing.T) {
	f := newFixture(t)
	refuse := func(r *RemoteCluster) { r.Refused[wire.ReasonBadKey]++ }
	f.do(func(tx *Txn) { tx.UpdateRemoteCluster("red", refuse) })
	first, _, _ := f.tables.RemoteClusters.Get(f.db.ReadTxn(), RemoteClusterByName("red"))
	f.do(func(tx *Txn) { tx.UpdateRemoteCluster("red", refuse) })
	second, _, _ := f.tables.RemoteClusters.Get(f.db.ReadTxn(), RemoteClusterByName("red"))
	require.EqualValues(t, 1, first.Refused[wire.ReasonBadKey])
	require.EqualValues(t, 2, second.Refused[wire.ReasonBadKey])
	f.do(func(tx *Txn) { tx.DeleteRemoteCluster("red"); tx.DeleteRemoteCluster("none") })
	require.Zero(t, f.tables.RemoteClusters.NumObjects(f.db.ReadTxn()))
}
