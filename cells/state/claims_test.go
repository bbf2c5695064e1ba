// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// modelAddress is what happened to one address, told without the order that
// claims.go keeps: who is alive, since when, and who holds it.
type modelAddress struct {
	alive  []Claim // oldest first; an update keeps the place
	holder Claim   // meaningless while nobody is alive
}

func sameClaimant(a, b Claim) bool { return a.Origin == b.Origin && a.Owner == b.Owner }

func (m *modelAddress) find(c Claim) int {
	return slices.IndexFunc(m.alive, func(o Claim) bool { return sameClaimant(o, c) })
}

func (m *modelAddress) upsert(c Claim) {
	onDemand := func(o Claim) bool { return o.Origin.Source == SourceOnDemand }
	if onDemand(c) && len(m.alive) > 0 && !onDemand(m.holder) {
		return
	}
	if !onDemand(c) {
		m.alive = slices.DeleteFunc(m.alive, onDemand)
	}
	i := m.find(c)
	if i < 0 {
		m.alive = append(m.alive, c)
		if len(m.alive) == 1 || c.Origin.Source < m.holder.Origin.Source {
			m.holder = c
		}
		return
	}
	m.alive[i] = c
	if sameClaimant(m.holder, c) {
		m.holder = c
	}
}

func (m *modelAddress) remove(c Claim) {
	i := m.find(c)
	if i < 0 {
		return
	}
	m.alive = slices.Delete(m.alive, i, i+1)
	if !sameClaimant(m.holder, c) {
		return
	}
	for i, next := range m.alive {
		if i == 0 || next.Origin.Source < m.holder.Origin.Source {
			m.holder = next
		}
	}
}

// claimMachine drives the Writer and the model with the same steps, each step a
// Txn, and follows the table as an exporter would.
type claimMachine struct {
	f       *fixture
	origins []*Origin
	model   map[netip.Prefix]*modelAddress
	// seen is the table as its follower knows it.
	seen map[netip.Prefix]*Endpoint
}

func (m *claimMachine) drawClaim(t *rapid.T) Claim {
	origin := rapid.SampledFrom(m.origins).Draw(t, "origin")
	c := Claim{
		Origin: origin,
		Endpoint: wire.Endpoint{
			Prefix:   rapid.SampledFrom([]netip.Prefix{prefix(ip), prefix("fd00::1")}).Draw(t, "prefix"),
			Identity: rapid.Uint32Range(1, 2).Draw(t, "identity"),
			Metadata: rapid.SampledFrom([]string{"", "m"}).Draw(t, "metadata"),
		},
	}
	if origin.Source == SourceLocal {
		c.Owner = slice(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "slice"),
			rapid.SampledFrom([]string{"web", "db"}).Draw(t, "pod"))
		c.Endpoint.Pod = c.Owner.Pod
	}
	return c
}

func (m *claimMachine) upsert(tx *Txn, t require.TestingT, c Claim) {
	conflict := tx.UpsertEndpoint(c.Origin, c.Owner, c.Endpoint)
	address := m.model[c.Endpoint.Prefix]
	address.upsert(c)
	require.Equal(t, address.holder.Origin.Cluster != c.Origin.Cluster, conflict)
}

func (m *claimMachine) remove(tx *Txn, c Claim) {
	tx.DeleteEndpoint(c.Origin, c.Owner, c.Endpoint.Prefix)
	m.model[c.Endpoint.Prefix].remove(c)
}

// check compares what a follower of the changes knows with the model.
func (m *claimMachine) check(t *rapid.T) {
	changes, _ := m.f.endpointChanges.Next(m.f.db.ReadTxn())
	for change := range changes {
		prefix := change.Object.Prefix()
		if change.Deleted {
			require.Empty(t, m.model[prefix].alive, "a deletion while a claim is alive")
			delete(m.seen, prefix)
		} else {
			m.seen[prefix] = change.Object
		}
	}
	counts := map[*Origin]Counts{}
	for prefix, address := range m.model {
		row := m.seen[prefix]
		if len(address.alive) == 0 {
			require.Nil(t, row)
			continue
		}
		require.NotNil(t, row)
		require.Equal(t, address.holder, row.Claim())
		claims := append([]Claim{row.Claim()}, row.Waiting()...)
		require.ElementsMatch(t, address.alive, claims)
		require.True(t, slices.IsSortedFunc(claims, func(a, b Claim) int {
			return int(a.Origin.Source) - int(b.Origin.Source)
		}))
		for _, c := range claims {
			n := counts[c.Origin]
			if sameClaimant(c, address.holder) {
				n.Endpoints++
			} else if c.Origin.Cluster != address.holder.Origin.Cluster {
				n.Conflicts++
			}
			if n != (Counts{}) {
				counts[c.Origin] = n
			}
		}
	}
	require.Equal(t, counts, m.f.w.CountByOrigin())
}

func TestClaimsFollowTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t)
		m := &claimMachine{
			f:       f,
			origins: []*Origin{f.local, f.red, f.blue, f.redResolved},
			model:   map[netip.Prefix]*modelAddress{prefix(ip): {}, prefix("fd00::1"): {}},
			seen:    map[netip.Prefix]*Endpoint{},
		}
		t.Repeat(map[string]func(*rapid.T){
			"upsert": func(t *rapid.T) {
				c := m.drawClaim(t)
				f.do(func(tx *Txn) { m.upsert(tx, t, c) })
			},
			"upsert again": func(t *rapid.T) {
				c := m.drawClaim(t)
				f.do(func(tx *Txn) { m.upsert(tx, t, c) })
				before := f.revisions()
				f.do(func(tx *Txn) { m.upsert(tx, t, c) })
				require.Equal(t, before, f.revisions())
			},
			"delete": func(t *rapid.T) {
				c := m.drawClaim(t)
				f.do(func(tx *Txn) { m.remove(tx, c) })
			},
			"move within a batch": func(t *rapid.T) {
				from, to := m.drawClaim(t), m.drawClaim(t)
				f.do(func(tx *Txn) {
					m.remove(tx, from)
					m.upsert(tx, t, to)
				})
			},
			"drain": func(t *rapid.T) {
				origin := rapid.SampledFrom(m.origins).Draw(t, "origin")
				f.do(func(tx *Txn) { tx.DeleteOrigin(origin, wire.Endpoints) })
				for _, address := range m.model {
					for _, c := range slices.Clone(address.alive) {
						if c.Origin == origin {
							address.remove(c)
						}
					}
				}
			},
			"aborted": func(t *rapid.T) {
				c := m.drawClaim(t)
				tx := f.w.Begin()
				tx.UpsertEndpoint(c.Origin, c.Owner, c.Endpoint)
				tx.DeleteOrigin(c.Origin, wire.Endpoints)
				tx.Abort()
			},
			"": m.check,
		})
	})
}

// drawEndpoint draws every field of the schema.
func drawEndpoint(t *rapid.T) wire.Endpoint {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "is4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")))
	})
	a := addr.Draw(t, "prefix")
	ep := wire.Endpoint{
		Prefix:         netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")),
		Identity:       rapid.Uint32().Draw(t, "identity"),
		EncryptionKey:  rapid.Uint8().Draw(t, "key"),
		Scope:          rapid.SampledFrom([]wire.Scope{wire.ScopeGlobal, wire.ScopeRegional}).Draw(t, "scope"),
		Metadata:       rapid.String().Draw(t, "metadata"),
		Namespace:      rapid.String().Draw(t, "namespace"),
		Pod:            rapid.String().Draw(t, "pod"),
		ServiceAccount: rapid.String().Draw(t, "account"),
	}
	if rapid.Bool().Draw(t, "has host") {
		ep.HostIP = addr.Draw(t, "host")
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		ep.NamedPorts = append(ep.NamedPorts, wire.NamedPort{
			Name:     rapid.StringN(0, -1, 300).Draw(t, "name"),
			Port:     rapid.Uint16().Draw(t, "port"),
			Protocol: rapid.SampledFrom([]string{"TCP", "UDP", "ANY", ""}).Draw(t, "protocol"),
		})
	}
	return ep
}

func TestRowHoldsTheWholeClaim(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		claim := Claim{
			Origin:   &Origin{Cluster: "red"},
			Owner:    Owner{Object: rapid.String().Draw(t, "object"), Pod: rapid.String().Draw(t, "owner pod")},
			Endpoint: drawEndpoint(t),
		}
		row := NewEndpoint(claim)
		require.Equal(t, claim, row.Claim())
		require.Equal(t, claim, copied(claim))
		require.True(t, row.says(&claim.Endpoint))
		require.Equal(t, claim.Endpoint.Namespace, row.Namespace())
		require.Equal(t, claim.Endpoint.EncryptionKey, row.EncryptionKey())
		require.Equal(t, claim.Endpoint.Scope, row.Scope())
		key, err := parsePrefixKey(claim.Endpoint.Prefix.String())
		require.NoError(t, err)
		require.True(t, key.Equal(endpointByPrefix.ObjectToKey(row)))
	})
}

// TestEveryFieldCounts changes one field after the other, those added to the
// schema later included: a field that a comparison forgets would be a change
// that is never seen.
func TestEveryFieldCounts(t *testing.T) {
	base := endpoint(ip, 1, "web")
	values := map[reflect.Type]any{
		reflect.TypeFor[netip.Prefix]():     prefix("10.9.9.9"),
		reflect.TypeFor[netip.Addr]():       netip.MustParseAddr("10.9.9.9"),
		reflect.TypeFor[uint32]():           uint32(99),
		reflect.TypeFor[uint8]():            uint8(99),
		reflect.TypeFor[wire.Scope]():       wire.ScopeRegional,
		reflect.TypeFor[string]():           "other",
		reflect.TypeFor[[]wire.NamedPort](): []wire.NamedPort{{Name: "http", Port: 80}},
	}
	row := NewEndpoint(Claim{Origin: &Origin{}, Endpoint: base})
	for i := range reflect.TypeFor[wire.Endpoint]().NumField() {
		changed := base
		field := reflect.ValueOf(&changed).Elem().Field(i)
		value, ok := values[field.Type()]
		require.True(t, ok, "no other value for %s", field.Type())
		field.Set(reflect.ValueOf(value))
		name := reflect.TypeFor[wire.Endpoint]().Field(i).Name
		require.False(t, row.says(&changed), name)
		require.False(t, sameEndpoint(&base, &changed), name)
		require.Equal(t, changed, NewEndpoint(Claim{Origin: &Origin{}, Endpoint: changed}).Endpoint(), name)
	}
}

// TestRowSize: one field more makes the allocation of each of 500,000 rows a
// fifth larger (96 bytes).
func TestRowSize(t *testing.T) {
	require.EqualValues(t, 80, unsafe.Sizeof(Endpoint{}))
}
