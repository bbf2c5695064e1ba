// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// fixture drives a reconciler round by round, without its job.
type fixture struct {
	*reconciler
	writer                 *state.Writer
	here, there, elsewhere *state.Origin
}

func newFixture(t require.TestingT, target Map) *fixture {
	db := statedb.New()
	writer, err := state.NewWriter(db)
	require.NoError(t, err)
	tables := writer.Tables()
	health, _ := cell.NewSimpleHealth()
	r := newReconciler(slog.New(slog.DiscardHandler), health, db, rules{clusterName: "here", ipv4: true},
		tables.Endpoints, tables.Nodes, &Datapath{target: target})
	require.NoError(t, r.watch())
	r.start()
	return &fixture{
		reconciler: r, writer: writer,
		here:      writer.Origin(local.Cluster, local.ClusterID, local.Source),
		there:     writer.Origin(remote.Cluster, remote.ClusterID, remote.Source),
		elsewhere: writer.Origin(other.Cluster, other.ClusterID, other.Source),
	}
}

// do makes one transaction and lets the reconciler follow.
func (f *fixture) do(change func(tx *state.Txn)) {
	tx := f.writer.Begin()
	defer tx.Abort() // a draw of change may end it
	change(tx)
	tx.Commit()
	for f.step().rest {
	}
}

// entries are those of the map without what is outside, each with what it is for
// and who says so.
func (f *fixture) entries(t require.TestingT) (lines []string) {
	for entry, err := range f.target.All() {
		require.NoError(t, err)
		c, ok := f.wanted.at(f.db.ReadTxn(), entry.Key)
		require.True(t, ok, "%s isn't wanted", entry)
		require.Equal(t, c.value, entry.Value, "at %s", entry.Key)
		if c.kind == kindOutside {
			continue
		}
		by := "-"
		if c.owner != nil {
			by = c.owner.name
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %d via %s", entry.Prefix(), c.kind, by, entry.Identity, entry.TunnelEndpoint()))
	}
	slices.Sort(lines)
	return lines
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

func newMemoryFixture(t require.TestingT) *fixture { return newFixture(t, newMemoryMap(1000)) }

func TestNodeDifference(t *testing.T) {
	f := newMemoryFixture(t)
	f.do(func(tx *state.Txn) {
		tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.1", "10.0.1.0/24", "10.0.2.0/24"))
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.1.7/32", "192.168.0.1", 70000))
	})
	require.Equal(t, []string{
		"10.0.1.0/24 pod-cidr there/n1 2 via 192.168.0.1",
		"10.0.1.7/32 endpoint - 70000 via 192.168.0.1",
		"10.0.2.0/24 pod-cidr there/n1 2 via 192.168.0.1",
		"192.168.0.1/32 node there/n1 6 via 0.0.0.0",
	}, f.entries(t))

	// What the node doesn't have any more goes; what depends on its address changes.
	f.do(func(tx *state.Txn) {
		tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.2", "10.0.1.0/24", "10.0.3.0/24"))
	})
	require.Equal(t, []string{
		"10.0.1.0/24 pod-cidr there/n1 2 via 192.168.0.2",
		"10.0.1.7/32 endpoint - 70000 via 192.168.0.1",
		"10.0.3.0/24 pod-cidr there/n1 2 via 192.168.0.2",
		"192.168.0.2/32 node there/n1 6 via 0.0.0.0",
	}, f.entries(t))

	f.do(func(tx *state.Txn) { tx.DeleteNode(f.there, "there", "n1") })
	require.Equal(t, []string{"10.0.1.7/32 endpoint - 70000 via 192.168.0.1"}, f.entries(t))
	f.do(func(tx *state.Txn) {
		tx.DeleteEndpoint(f.there, state.Owner{}, netip.MustParsePrefix("10.0.1.7/32"))
	})
	require.Empty(t, f.entries(t))
	require.Empty(t, f.wanted.claims.nodes)
	require.Empty(t, f.wanted.claims.contested)
}

func TestPrecedence(t *testing.T) {
	f := newMemoryFixture(t)
	first := func() string { return f.entries(t)[0] }

	// Pod CIDR < node address < endpoint, of one source.
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "cidr", "", "10.0.0.1/32")) })
	require.Equal(t, "10.0.0.1/32 pod-cidr there/cidr 2 via 0.0.0.0", first())
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "node", "10.0.0.1")) })
	require.Equal(t, "10.0.0.1/32 node there/node 6 via 0.0.0.0", first())
	f.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
	})
	require.Equal(t, "10.0.0.1/32 endpoint - 70000 via 0.0.0.0", first())

	// Of equals, the first keeps it.
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.elsewhere, simpleNode("elsewhere", "node", "10.0.0.1")) })
	f.do(func(tx *state.Txn) {
		tx.DeleteEndpoint(f.there, state.Owner{}, netip.MustParsePrefix("10.0.0.1/32"))
	})
	require.Equal(t, "10.0.0.1/32 node there/node 6 via 0.0.0.0", first())
	f.do(func(tx *state.Txn) { tx.DeleteNode(f.there, "there", "node") })
	require.Equal(t, "10.0.0.1/32 node elsewhere/node 6 via 0.0.0.0", first())

	// What is local beats what is remote, whatever it is: a remote cluster can
	// neither take over a local node's address nor redefine "outside".
	f.do(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("0.0.0.0/0", "", 70000))
		tx.UpsertNode(f.here, simpleNode("here", "node", "", "10.0.0.1/32"))
	})
	require.Equal(t, "10.0.0.1/32 pod-cidr here/node 2 via 0.0.0.0", first())
	outside, ok := f.target.Lookup(addr("8.8.8.8"))
	require.True(t, ok)
	require.EqualValues(t, identityWorld, outside.Identity)
}

// countingMap counts the entries that are written.
type countingMap struct {
	*memoryMap
	updated int
}

func (m *countingMap) Update(entries []Entry) []error {
	m.updated += len(entries)
	return m.memoryMap.Update(entries)
}

// TestUnchangedNodeWritesNothing: nodes are updated often, and what they give
// hardly ever changes.
func TestUnchangedNodeWritesNothing(t *testing.T) {
	target := &countingMap{memoryMap: newMemoryMap(100)}
	f := newFixture(t, target)
	node := simpleNode("there", "n1", "192.168.0.1", "10.0.1.0/24")
	f.do(func(tx *state.Txn) { tx.UpsertNode(f.there, node) })
	before := target.updated
	f.do(func(tx *state.Txn) {
		node.EncryptionKey++ // as it is for pod CIDRs alone
		tx.UpsertNode(f.there, node)
	})
	require.Equal(t, before+1, target.updated)
}

func TestSyncedAfterBothSources(t *testing.T) {
	f := newMemoryFixture(t)
	nodesDone := f.writer.RegisterInitializer("test", wire.Nodes)
	endpointsDone := f.writer.RegisterInitializer("test", wire.Endpoints)
	synced := func(change func(tx *state.Txn)) bool {
		tx := f.writer.Begin()
		change(tx)
		tx.Commit()
		return f.step().synced
	}
	require.False(t, synced(func(tx *state.Txn) { tx.UpsertNode(f.there, simpleNode("there", "n1", "192.168.0.1")) }))
	require.False(t, synced(func(tx *state.Txn) { nodesDone(tx) }))
	require.True(t, synced(func(tx *state.Txn) {
		tx.UpsertEndpoint(f.there, state.Owner{}, claimOn("10.0.0.1/32", "", 70000))
		endpointsDone(tx)
	}))
	require.Len(t, f.entries(t), 2)
}

// TestRounds: more changes than a round takes are all taken in, and the sources
// don't count as synced before.
func TestRounds(t *testing.T) {
	const n = roundSize + 10
	f := newFixture(t, newMemoryMap(n+1))
	tx := f.writer.Begin()
	for _, entry := range numbered(t, n) {
		tx.UpsertEndpoint(f.there, state.Owner{}, wire.Endpoint{Prefix: entry.Prefix(), Identity: entry.Identity})
	}
	tx.Commit()
	next := f.step()
	require.True(t, next.rest)
	require.False(t, next.synced)
	require.Len(t, content(t, f.target), roundSize+1)
	next = f.step()
	require.False(t, next.rest)
	require.True(t, next.synced)
	require.Len(t, content(t, f.target), n+1)
}

// failingMap fails at the keys of a set.
type failingMap struct {
	*memoryMap
	at map[Key]bool
}

func (m *failingMap) Update(entries []Entry) (errs []error) {
	for i, entry := range entries {
		err := errInjected
		if !m.at[entry.Key] {
			err = errors.Join(m.memoryMap.Update([]Entry{entry})...)
		}
		if err != nil {
			errs = setError(errs, len(entries), i, err)
		}
	}
	return errs
}

func (m *failingMap) Delete(keys []Key) (errs []error) {
	for i, key := range keys {
		if m.at[key] {
			errs = setError(errs, len(keys), i, errInjected)
		} else {
			m.memoryMap.Delete([]Key{key})
		}
	}
	return errs
}

var errInjected = errors.New("injected")

// TestFailedAreTriedAgain: a key that fails doesn't keep others out, and gets
// what is wanted by then, which may be nothing.
func TestFailedAreTriedAgain(t *testing.T) {
	target := &failingMap{memoryMap: newMemoryMap(100), at: map[Key]bool{}}
	f := newFixture(t, target)
	put := func(ip string, identity uint32) {
		f.do(func(tx *state.Txn) { tx.UpsertEndpoint(f.there, state.Owner{}, claimOn(ip, "", identity)) })
	}
	remove := func(ip string) {
		f.do(func(tx *state.Txn) { tx.DeleteEndpoint(f.there, state.Owner{}, netip.MustParsePrefix(ip)) })
	}
	put("10.0.0.1/32", 70001)
	put("10.0.0.2/32", 70002)
	target.at[mustKey(t, "10.0.0.1/32")], target.at[mustKey(t, "10.0.0.2/32")] = true, true
	target.at[mustKey(t, "10.0.0.3/32")] = true
	remove("10.0.0.1/32")
	put("10.0.0.2/32", 80002)
	put("10.0.0.3/32", 70003)
	put("10.0.0.4/32", 70004)
	require.Len(t, f.failed, 3)
	require.True(t, f.fresh)
	entry, _ := f.target.Lookup(addr("10.0.0.4"))
	require.EqualValues(t, 70004, entry.Identity)

	remove("10.0.0.3/32")
	put("10.0.0.2/32", 90002)
	require.Len(t, f.failed, 3, "nothing is tried again before its time but what changed")
	clear(target.at)
	f.retry = true
	f.step()
	require.Empty(t, f.failed)
	require.Equal(t, []string{
		"10.0.0.2/32 endpoint - 90002 via 0.0.0.0",
		"10.0.0.4/32 endpoint - 70004 via 0.0.0.0",
	}, f.entries(t))
}

// TestReconcileProperty makes random changes of few prefixes by several clusters,
// with a map that is too small and fails now and then, and expects the map to
// have, at each prefix, a strongest one of the claims that are there; but for
// what failed or didn't fit, and nothing of that once there is room and no fault.
func TestReconcileProperty(t *testing.T) {
	prefixes := []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/24", "0.0.0.0/0"}
	rapid.Check(t, func(t *rapid.T) {
		target := &failingMap{memoryMap: newMemoryMap(rapid.IntRange(2, 5).Draw(t, "capacity")), at: map[Key]bool{}}
		f := newFixture(t, target)
		origins := []*state.Origin{f.here, f.there, f.elsewhere}
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
			"fault": func(t *rapid.T) {
				prefix := netip.MustParsePrefix(genPrefix.Draw(t, "prefix"))
				key, _ := NewKey(prefix)
				target.at[key] = !target.at[key]
			},
			"retry": func(*rapid.T) {
				f.retry = true
				f.step()
			},
			"": func(t *rapid.T) { f.check(t, target.memoryMap) },
		})
		clear(target.at)
		target.capacity = 100
		f.retry = true
		f.step()
		f.compared = true // as if the map were an earlier process's: compare it
		require.NoError(t, f.prune(f.db.ReadTxn()))
		require.Empty(t, f.failed)
		require.Empty(t, f.overflow)
		f.check(t, target.memoryMap)
	})
}

func (f *fixture) check(t require.TestingT, target *memoryMap) {
	txn := f.db.ReadTxn()
	all := map[Key][]claim{}
	add := func(entry Entry, source state.Source, kind kind) {
		all[entry.Key] = append(all[entry.Key], claim{nil, source, kind, entry.Value})
	}
	for _, entry := range f.wanted.rules.outside() {
		add(entry, state.SourceLocal, kindOutside)
	}
	for ep := range f.wanted.endpoints.All(txn) {
		entry, ok := f.wanted.rules.endpoint(ep)
		require.True(t, ok)
		add(entry, ep.Origin().Source, kindEndpoint)
	}
	for node := range f.nodes.All(txn) {
		for _, entry := range f.wanted.rules.node(&node.Node) {
			add(entry.Entry, node.Origin.Source, entry.kind)
		}
	}
	unsettled := func(key Key) bool {
		_, failed := f.failed[key]
		_, overflow := f.overflow[key]
		require.False(t, failed && overflow)
		return failed || overflow
	}
	has := map[Key]Value{}
	for entry := range target.All() {
		has[entry.Key] = entry.Value
		require.True(t, unsettled(entry.Key) || len(all[entry.Key]) > 0, "%s isn't wanted", entry)
	}
	wanted := map[Key]Value{}
	for entry := range f.wanted.all(txn) {
		require.NotContains(t, wanted, entry.Key)
		wanted[entry.Key] = entry.Value
	}
	require.Equal(t, len(all), len(wanted))
	for key, claims := range all {
		best := slices.MinFunc(claims, claim.compare)
		got, ok := f.wanted.at(txn, key)
		require.True(t, ok)
		require.Zero(t, got.compare(best), "%s: %v isn't among the strongest of %v", key, got, claims)
		got.owner = nil
		require.Contains(t, claims, got)
		require.Equal(t, got.value, wanted[key])
		if !unsettled(key) {
			require.Equal(t, got.value, has[key], "at %s", key)
		}
	}
	for key := range f.overflow {
		require.Contains(t, all, key)
	}
}
