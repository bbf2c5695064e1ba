// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// side is one resource: what its source has, and what a Scope would hold of it.
type side struct {
	a      *admission
	source map[string]string // key → name of the value
	local  map[string]string
	told   map[string]bool // in the present pass
}

func (s *side) Held() int { return len(s.local) }

func (s *side) Holds(key string) bool { _, ok := s.local[key]; return ok }

// TestAdmissionAgainstModel drives resources that share a budget with what a
// source may do, in watches and lists that may end halfway, and checks that what
// is taken is what should be: every good key while there is room, no bad one,
// never more than the budget, and after room was made, those that waited for it;
// of endpoints, whatever region the source is in, none that is regional in another
// one, and those are counted.
func TestAdmissionAgainstModel(t *testing.T) {
	const max = 4
	values := map[string]string{"good": "v", "better": "w", "large": strings.Repeat("x", wire.MaxValueBytes+1),
		"regional": `{"SyncScope":"regional"}`, "global": `{"SyncScope":"global"}`}
	rapid.Check(t, func(t *rapid.T) {
		shared := &budget{max: max}
		validator := wire.NewValidator("c", 1, 255)
		sides := map[wire.Resource]*side{}
		for _, r := range []wire.Resource{wire.Nodes, wire.Services, wire.Endpoints} {
			s := &side{source: map[string]string{}, local: map[string]string{}, told: map[string]bool{}}
			s.a = newAdmission(r, validator, shared, s)
			shared.keepers = append(shared.keepers, s)
			sides[r] = s
		}
		goodKey := func(r wire.Resource, key string) bool {
			if r == wire.Endpoints {
				_, err := wire.ParseEndpointKey(key)
				return err == nil
			}
			return strings.Count(key, "/") == map[wire.Resource]int{wire.Nodes: 0, wire.Services: 1}[r]
		}
		apply := func(s *side, ev etcd.Event, listing bool) {
			op, err := s.a.admit(ev, listing, s.a.crowds(1))
			if err != nil {
				var refusal *wire.Refusal
				require.ErrorAs(t, err, &refusal)
				require.Equal(t, ev.Key, refusal.Key)
			}
			require.Equal(t, ev.Key, op.Key)
			s.told[ev.Key] = true
			if op.Delete {
				delete(s.local, op.Key)
			} else {
				s.local[op.Key] = string(op.Value)
			}
		}
		// list tells the first of the source's keys, or all, and then completes.
		list := func(s *side, keys int) {
			s.a.beginPass()
			s.told = map[string]bool{}
			for _, k := range slices.Sorted(maps.Keys(s.source)) {
				if len(s.told) == keys {
					return
				}
				apply(s, etcd.Event{Key: k, Value: []byte(values[s.source[k]])}, true)
			}
			s.a.endPass()
			maps.DeleteFunc(s.local, func(k, _ string) bool { return !s.told[k] })
		}
		resource := rapid.SampledFrom([]wire.Resource{wire.Nodes, wire.Services, wire.Endpoints})
		key := rapid.SampledFrom([]string{"a", "b", "c", "d", "n/a", "n/b", "n/c", "too/many/parts", "",
			"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"})
		value := rapid.SampledFrom([]string{"good", "better", "large", "regional", "regional", "global"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				s := sides[resource.Draw(t, "resource")]
				k, v := key.Draw(t, "key"), value.Draw(t, "value")
				s.source[k] = v
				apply(s, etcd.Event{Key: k, Value: []byte(values[v])}, false)
			},
			"delete": func(t *rapid.T) { // of a key that was never told of, too
				s := sides[resource.Draw(t, "resource")]
				k := key.Draw(t, "key")
				delete(s.source, k)
				apply(s, etcd.Event{Key: k, Deleted: true}, false)
			},
			"another source": func(t *rapid.T) {
				s := sides[resource.Draw(t, "resource")]
				s.source = rapid.MapOf(key, value).Draw(t, "source")
				list(s, rapid.IntRange(0, len(s.source)).Draw(t, "ends after"))
				for s.a.room() {
					list(s, -1)
				}
				list(s, -1)
			},
			"another region": func(t *rapid.T) {
				s := sides[wire.Endpoints]
				s.a.regional = !s.a.regional
				list(s, rapid.IntRange(0, len(s.source)).Draw(t, "ends after"))
				// A source that isn't complete is watched meanwhile.
				k, v := key.Draw(t, "key"), value.Draw(t, "value")
				s.source[k] = v
				apply(s, etcd.Event{Key: k, Value: []byte(values[v])}, false)
				list(s, -1)
			},
			"drain": func(t *rapid.T) {
				s := sides[resource.Draw(t, "resource")]
				clear(s.local)
				s.a.clear()
				list(s, -1)
			},
			"room": func(t *rapid.T) {
				for _, s := range sides {
					if s.a.room() {
						list(s, -1)
					}
				}
			},
			"": func(t *rapid.T) {
				for r, s := range sides {
					crowded, skipped := 0, 0
					for k, v := range s.local {
						require.Equal(t, values[s.source[k]], v)
					}
					for k, v := range s.source {
						_, taken := s.local[k]
						good := goodKey(r, k) && k != "" && v != "large"
						if good && s.a.regional && v == "regional" {
							good = false
							skipped++
						}
						require.False(t, taken && !good, "took %q = %s", k, v)
						if good && !taken {
							require.Equal(t, wire.ReasonTooMany, s.a.refused[k].reason)
							crowded++
						}
					}
					for k := range s.a.refused {
						require.Contains(t, s.source, k)
					}
					require.Equal(t, crowded, s.a.crowded)
					require.Equal(t, skipped, s.a.skipped.len())
				}
				require.LessOrEqual(t, shared.used(), max)
			},
		})
		for again := true; again; {
			again = false
			for _, s := range sides {
				if s.a.room() {
					again = true
					list(s, -1)
				}
			}
		}
	})
}

// TestRefusalIsReportedOnce lists a refused key again and again; a source that
// writes it anew is reported anew.
func TestRefusalIsReportedOnce(t *testing.T) {
	s := &side{local: map[string]string{}}
	a := newAdmission(wire.Nodes, wire.NewValidator("c", 1, 255), &budget{max: 1, keepers: []keeper{s}}, s)
	ev := etcd.Event{Key: "a/b"}
	for n, report := range []bool{true, false, false} {
		a.beginPass()
		_, err := a.admit(ev, true, false)
		require.Equal(t, report, err != nil, n)
		a.endPass()
	}
	_, err := a.admit(ev, false, false)
	require.Error(t, err)
}

func TestPending(t *testing.T) {
	rows := []*state.RemoteCluster{
		{Name: "ready", Ready: true, ClusterID: 1},
		{Name: "syncing", ClusterID: 2},
		{Name: "unreachable"},
	}
	all := []string{"gone", "ready", "syncing", "unreachable"}
	require.Equal(t, []string{"syncing", "unreachable"}, pending(all, rows, false))
	require.Equal(t, []string{"syncing"}, pending(all, rows, true))
	require.Empty(t, pending([]string{"ready"}, rows, false))
}

func TestRefusedKeysAreForgotten(t *testing.T) {
	s := &side{local: map[string]string{}}
	a := newAdmission(wire.Nodes, wire.NewValidator("c", 1, 255), &budget{max: 1, keepers: []keeper{s}}, s)
	_, err := a.admit(etcd.Event{Key: "a/b"}, false, false)
	require.Error(t, err)
	_, err = a.admit(etcd.Event{Key: "a/b", Deleted: true}, false, false)
	require.NoError(t, err)
	require.Empty(t, a.refused)
	_, err = a.admit(etcd.Event{Key: "a/b"}, false, false)
	require.Error(t, err)
	a.beginPass()
	a.endPass()
	require.Empty(t, a.refused, "the list didn't have it")
}
