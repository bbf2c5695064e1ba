// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/reconciler"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// fixture drives a deriver step by step, without its job.
type fixture struct {
	*deriver
	writer                 *state.Writer
	here, there, elsewhere *state.Origin
}

func newFixture(t require.TestingT) *fixture {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	table, err := NewTable(db)
	require.NoError(t, err)
	tables := writer.Tables()
	d := newDeriver(db, table, tables.Endpoints, tables.Nodes, rules{clusterName: "here", ipv4: true})
	require.NoError(t, d.watch())
	d.start()
	return &fixture{
		deriver: d, writer: writer,
		here:      writer.Origin(local.Cluster, local.ClusterID, local.Source),
		there:     writer.Origin(remote.Cluster, remote.ClusterID, remote.Source),
		elsewhere: writer.Origin(other.Cluster, other.ClusterID, other.Source),
	}
}

// do makes one transaction and lets the deriver follow.
func (f *fixture) do(change func(tx *state.Txn)) {
	tx := f.writer.Begin()
	change(tx)
	tx.Commit()
	for rest := true; rest; {
		_, rest = f.step()
	}
}

// rows are the table without the entry of what is outside.
func (f *fixture) rows() (rows []string) {
	for row := range f.table.All(f.db.ReadTxn()) {
		if row.kind != kindOutside {
			rows = append(rows, fmt.Sprintf("%s %s %d via %s", row.Prefix(), row.kind, row.Identity, row.TunnelEndpoint()))
		}
	}
	return rows
}

func claimOn(prefix, host string, identity uint32) wire.Endpoint {
	return wire.Endpoint{Prefix: netip.MustParsePrefix(prefix), HostIP: addr(host), Identity: identity}
}

func simpleNode(cluster, name, ip string, cidrs ...string) wire.Node {
	n := wire.Node{Cluster: cluster, Name: name}
	if ip != "" {
		n.Addresses = []wire.NodeAddress{{Type: addressInternal, IP: addr(ip)}}
	}
	for _, cidr := range cidrs {
		n.PodCIDRs4 = append(n.PodCIDRs4, netip.MustParsePrefix(cidr))
	}
	return n
}

func TestDeriveNodeDifference(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *state.Txn) {
		tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.1", "10.0.1.0/24", "10.0.2.0/24"))
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
	})
	require.Equal(t, []string{
		"10.0.1.0/24 pod-cidr 2 via 192.168.0.1",
		"10.0.1.7/32 endpoint 70000 via 192.168.0.1",
		"10.0.2.0/24 pod-cidr 2 via 192.168.0.1",
		"192.168.0.1/32 node 6 via 0.0.0.0",
	}, f.rows())

	// What the node doesn't have any more goes; what depends on its address changes.
	f.do(func(tx *state.Txn) {
		tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.2", "10.0.1.0/24", "10.0.3.0/24"))
	})
	require.Equal(t, []string{
		"10.0.1.0/24 pod-cidr 2 via 192.168.0.2",
		"10.0.1.7/32 endpoint 70000 via 192.168.0.1",
		"10.0.3.0/24 pod-cidr 2 via 192.168.0.2",
		"192.168.0.2/32 node 6 via 0.0.0.0",
	}, f.rows())

	f.do(func(tx *state.Txn) { tx.DeleteNode(f.there, "there", "n1") })
	require.Equal(t, []string{"10.0.1.7/32 endpoint 70000 via 192.168.0.1"}, f.rows())
	f.do(func(tx *state.Txn) {
		tx.DeleteEndpoint(f.there, state.Owner{}, netip.MustParsePrefix("10.0.1.7/32"))
	})
	require.Empty(t, f.rows())
	require.Empty(t, f.known)
	require.Empty(t, f.waiting)
}

func TestDerivePrecedence(t *testing.T) {
	f := newFixture(t)
	first := func() string { return f.rows()[0] }

	// Pod CIDR < node address < endpoint, of one source.
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "cidr", "", "10.0.0.1/32")) })
	require.Equal(t, "10.0.0.1/32 pod-cidr 2 via 0.0.0.0", first())
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "node", "10.0.0.1")) })
	require.Equal(t, "10.0.0.1/32 node 6 via 0.0.0.0", first())
	f.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
	})
	require.Equal(t, "10.0.0.1/32 endpoint 70000 via 0.0.0.0", first())

	// Of equals, the first keeps it.
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.elsewhere, simpleNode("elsewhere", "node", "10.0.0.1")) })
	f.do(func(tx *state.Txn) {
		tx.DeleteEndpoint(f.there, state.Owner{}, netip.MustParsePrefix("10.0.0.1/32"))
	})
	require.Equal(t, "10.0.0.1/32 node 6 via 0.0.0.0", first())
	row, _, _ := f.table.Get(f.db.ReadTxn(), ByPrefix(netip.MustParsePrefix("10.0.0.1/32")))
	require.Equal(t, "there/node", row.owner.name)
	f.do(func(tx *state.Txn) { tx.DeleteNode(f.there, "there", "node") })
	row, _, _ = f.table.Get(f.db.ReadTxn(), ByPrefix(netip.MustParsePrefix("10.0.0.1/32")))
	require.Equal(t, "elsewhere/node", row.owner.name)

	// What is local beats what is remote, whatever it is: a remote cluster can
	// neither take over a local node's address nor redefine "outside".
	f.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("0.0.0.0/0", "", 70000))
		tx.UpsertNode(f.here, simpleNode("here", "node", "", "10.0.0.1/32"))
	})
	require.Equal(t, "10.0.0.1/32 pod-cidr 2 via 0.0.0.0", first())
	row, _, _ = f.table.Get(f.db.ReadTxn(), ByPrefix(netip.MustParsePrefix("0.0.0.0/0")))
	require.EqualValues(t, identityWorld, row.Identity)
	require.Equal(t, kindOutside, row.kind)
}

// TestDeriveKeepsStatusOfEqualValues: an entry that passes to another owner with
// the same value isn't written again.
func TestDeriveKeepsStatusOfEqualValues(t *testing.T) {
	f := newFixture(t)
	f.do(func(tx *state.Txn) {
		tx.UpsertNode(f.there, simpleNode("there", "a", "192.168.0.1"))
		tx.UpsertNode(f.there, simpleNode("there", "b", "192.168.0.1"))
	})
	prefix := ByPrefix(netip.MustParsePrefix("192.168.0.1/32"))
	row, _, _ := f.table.Get(f.db.ReadTxn(), prefix)
	_, committed := row.Committed()
	require.False(t, committed)
	require.NotZero(t, row.Status().ID)

	wtxn := f.db.WriteTxn(f.table)
	_, _, err := f.table.Insert(wtxn, setStatus(cloneRow(row), reconciler.StatusDone()))
	require.NoError(t, err)
	wtxn.Commit()
	f.do(func(tx *state.Txn) { tx.DeleteNode(f.there, "there", "a") })
	row, _, _ = f.table.Get(f.db.ReadTxn(), prefix)
	require.Equal(t, "there/b", row.owner.name)
	_, committed = row.Committed()
	require.True(t, committed)
}

func TestDeriveInitializesAfterBothSources(t *testing.T) {
	f := newFixture(t)
	nodesDone := f.writer.RegisterInitializer("test", wire.Nodes)
	endpointsDone := f.writer.RegisterInitializer("test", wire.Endpoints)
	initialized := func() bool {
		ok, _ := f.table.Initialized(f.db.ReadTxn())
		return ok
	}
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.1")) })
	require.False(t, initialized())
	f.do(func(tx *state.Txn) { nodesDone(tx) })
	require.False(t, initialized())
	f.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
		endpointsDone(tx)
	})
	require.True(t, initialized())
	require.Len(t, f.rows(), 2)
}

// TestDeriveInRounds: more changes than a round takes are all taken in, and the
// table isn't initialized before.
func TestDeriveInRounds(t *testing.T) {
	f := newFixture(t)
	const n = roundSize + 10
	tx := f.writer.Begin()
	for _, entry := range numbered(t, n) {
		tx.UpsertEndpoint(f.there, state.Owner{}, wire.Endpoint{Prefix: entry.Prefix(), Identity: entry.Identity})
	}
	tx.Commit()
	_, rest := f.step()
	require.True(t, rest)
	require.Equal(t, roundSize+1, f.table.NumObjects(f.db.ReadTxn()))
	initialized, _ := f.table.Initialized(f.db.ReadTxn())
	require.False(t, initialized)
	_, rest = f.step()
	require.False(t, rest)
	require.Equal(t, n+1, f.table.NumObjects(f.db.ReadTxn()))
	initialized, _ = f.table.Initialized(f.db.ReadTxn())
	require.True(t, initialized)
}

// TestDeriveProperty makes random changes of few prefixes by several clusters,
// and expects of each row that it is a strongest one of the claims that are
// there, and that rows and claims have the same prefixes.
func TestDeriveProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t)
		origins := []*state.Origin{f.here, f.there, f.elsewhere}
		prefixes := []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/24", "0.0.0.0/0"}
		genOrigin := rapid.SampledFrom(origins)
		genPrefix := rapid.SampledFrom(prefixes)
		genName := rapid.SampledFrom([]string{"n1", "n2"})
		t.Repeat(map[string]func(*rapid.T){
			"batch": func(t *rapid.T) {
				f.do(func(tx *state.Txn) {
					for range rapid.IntRange(1, 4).Draw(t, "changes") {
						origin, prefix, name := genOrigin.Draw(t, "origin"), genPrefix.Draw(t, "prefix"), genName.Draw(t, "name")
						switch rapid.IntRange(0, 3).Draw(t, "change") {
						case 0:
							tx.UpsertEndpoint(origin, state.Owner{}, claimOn(prefix, "", rapid.Uint32Range(256, 300).Draw(t, "identity")))
						case 1:
							tx.DeleteEndpoint(origin, state.Owner{}, netip.MustParsePrefix(prefix))
						case 2:
							ip := rapid.SampledFrom([]string{"", "10.0.0.1", "10.0.0.2"}).Draw(t, "address")
							cidrs := rapid.SliceOfNDistinct(genPrefix, 0, 2, rapid.ID).Draw(t, "CIDRs")
							tx.UpsertNode(origin, simpleNode(origin.Cluster, name, ip, cidrs...))
						case 3:
							tx.DeleteNode(origin, origin.Cluster, name)
						}
					}
				})
			},
			"": func(t *rapid.T) { f.check(t) },
		})
	})
}

func (f *fixture) check(t require.TestingT) {
	txn := f.db.ReadTxn()
	claims := map[Key][]claim{}
	add := func(entry Entry, source state.Source, kind kind) {
		claims[entry.Key] = append(claims[entry.Key], claim{nil, source, kind, entry.Value})
	}
	for _, entry := range f.rules.outside() {
		add(entry, state.SourceLocal, kindOutside)
	}
	for ep := range f.endpoints.All(txn) {
		entry, ok := f.rules.endpoint(ep)
		require.True(t, ok)
		add(entry, ep.Origin().Source, kindEndpoint)
	}
	for node := range f.nodes.All(txn) {
		for _, entry := range f.rules.node(&node.Node) {
			add(entry.Entry, node.Origin.Source, entry.kind)
		}
	}
	require.Equal(t, len(claims), f.table.NumObjects(txn))
	for row := range f.table.All(txn) {
		best := slices.MinFunc(claims[row.Key], claim.compare)
		got := row.claim()
		require.Zero(t, got.compare(best), "%s: %v isn't among the strongest of %v", row.Key, got, claims[row.Key])
		got.owner = nil
		require.Contains(t, claims[row.Key], got)
		if n := len(claims[row.Key]); n > 1 {
			require.Len(t, f.waiting[row.Key], n)
		} else {
			require.NotContains(t, f.waiting, row.Key)
		}
	}
}
