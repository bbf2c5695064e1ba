// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// TestAdmissionAgainstModel drives two resources that share a budget with what a
// source may do, and checks that what is taken is what should be: every good key
// while there is room, no bad one, never more than the budget, and after room
// was made, those that waited for it.
func TestAdmissionAgainstModel(t *testing.T) {
	const max = 4
	values := map[string]string{"good": "v", "better": "w", "large": strings.Repeat("x", wire.MaxValueBytes+1)}
	rapid.Check(t, func(t *rapid.T) {
		shared := &budget{max: max}
		validator := wire.NewValidator("c", 1, 255)
		type side struct {
			a      *admission
			source map[string]string // key → name of the value
			local  map[string]string
		}
		sides := map[wire.Resource]*side{}
		for _, r := range []wire.Resource{wire.Nodes, wire.Services} {
			sides[r] = &side{newAdmission(r, validator, shared), map[string]string{}, map[string]string{}}
		}
		goodKey := func(r wire.Resource, key string) bool {
			return strings.Count(key, "/") == map[wire.Resource]int{wire.Nodes: 0, wire.Services: 1}[r]
		}
		apply := func(s *side, ev etcd.Event) {
			ops, err := s.a.admit(nil, ev)
			if err != nil {
				var refusal *wire.Refusal
				require.ErrorAs(t, err, &refusal)
				require.Equal(t, ev.Key, refusal.Key)
			}
			for _, op := range ops {
				if op.Delete {
					require.Contains(t, s.local, op.Key, "deletion of what isn't there")
					delete(s.local, op.Key)
				} else {
					s.local[op.Key] = string(op.Value)
				}
			}
		}
		resource := rapid.SampledFrom([]wire.Resource{wire.Nodes, wire.Services})
		key := rapid.SampledFrom([]string{"a", "b", "c", "d", "n/a", "n/b", "n/c", "too/many/parts", ""})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				s := sides[resource.Draw(t, "resource")]
				k, v := key.Draw(t, "key"), rapid.SampledFrom([]string{"good", "better", "large"}).Draw(t, "value")
				_, known := s.source[k]
				s.source[k] = v
				apply(s, etcd.Event{Key: k, Value: []byte(values[v]), New: !known})
			},
			"delete": func(t *rapid.T) {
				s := sides[resource.Draw(t, "resource")]
				k := key.Draw(t, "key")
				if _, ok := s.source[k]; ok {
					delete(s.source, k)
					apply(s, etcd.Event{Key: k, Deleted: true})
				}
			},
			"room": func(t *rapid.T) {
				for _, s := range sides {
					for _, k := range s.a.room() { // as the Reader would, asked to resend
						apply(s, etcd.Event{Key: k, Value: []byte(values[s.source[k]])})
					}
				}
			},
			"": func(t *rapid.T) {
				total := 0
				for r, s := range sides {
					total += len(s.local)
					for k, v := range s.local {
						require.Equal(t, values[s.source[k]], v)
					}
					for k, v := range s.source {
						_, taken := s.local[k]
						good := goodKey(r, k) && k != "" && v != "large"
						require.False(t, taken && !good, "took %q = %s", k, v)
						if good && !taken {
							require.Equal(t, wire.ReasonTooMany, s.a.refused[k])
						}
					}
				}
				require.Equal(t, total, shared.used)
				require.LessOrEqual(t, total, max)
			},
		})
		for {
			waiting := 0
			for _, s := range sides {
				for _, k := range s.a.room() {
					waiting++
					apply(s, etcd.Event{Key: k, Value: []byte(values[s.source[k]])})
				}
			}
			if waiting == 0 {
				break
			}
		}
		for _, s := range sides {
			require.True(t, s.a.crowded == 0 || shared.used >= max, "somebody waits although there is room")
		}
	})
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
	a := newAdmission(wire.Nodes, wire.NewValidator("c", 1, 255), &budget{max: 1})
	_, err := a.admit(nil, etcd.Event{Key: "a/b", New: true})
	require.Error(t, err)
	ops, err := a.admit(nil, etcd.Event{Key: "a/b", Deleted: true})
	require.NoError(t, err)
	require.Empty(t, ops)
	require.Empty(t, maps.Clone(a.refused))
}
