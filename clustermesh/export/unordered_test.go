// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// unordered is a scope whose operations are committed in the order in which a test
// says, of each key the last one. A real etcd makes such an order when commits
// overlap or fail, which can't be brought about at will.
type unordered struct {
	committed map[string]string
	// lost are keys that etcd has lost; they are held until they are deleted.
	lost    map[string]struct{}
	stale   map[string]struct{}
	pending map[string]etcd.Op
	onKey   map[string][]func()
	onAll   []waiting
	refills uint64
}

// waiting is for keys to be committed.
type waiting struct {
	keys map[string]struct{}
	done func()
}

func newUnordered(left map[string]string) *unordered {
	u := &unordered{lost: map[string]struct{}{}, pending: map[string]etcd.Op{}, onKey: map[string][]func(){}}
	u.find(left)
	return u
}

// find has the scope learn what etcd has.
func (u *unordered) find(left map[string]string) {
	u.committed, u.stale = map[string]string{}, map[string]struct{}{}
	for key, value := range left {
		u.committed[key], u.stale[key] = value, struct{}{}
	}
}

// lose swaps the etcd for one that has this left; what is pending is committed there.
func (u *unordered) lose(left map[string]string) {
	for key := range u.committed {
		u.lost[key] = struct{}{}
	}
	u.find(left)
	for key := range u.lost {
		u.stale[key] = struct{}{}
	}
	u.refills++
}

func (u *unordered) Load(context.Context) error          { return nil }
func (u *unordered) AwaitComplete(context.Context) error { return nil }
func (u *unordered) IsComplete() bool                    { return true }
func (u *unordered) Len() int                            { return len(u.committed) }

func (u *unordered) Apply(ops []etcd.Op) {
	for _, op := range ops {
		if !op.Delete {
			delete(u.stale, op.Key)
		}
		value, there := u.committed[op.Key]
		_, lost := u.lost[op.Key]
		if op.Delete && !there && !lost || !op.Delete && there && value == string(op.Value) {
			delete(u.pending, op.Key)
			u.tell(op.Key)
			continue
		}
		u.pending[op.Key] = op
	}
}

func (u *unordered) Holds(key string) bool {
	if op, ok := u.pending[key]; ok {
		return !op.Delete
	}
	_, ok := u.committed[key]
	_, lost := u.lost[key]
	return ok || lost
}

func (u *unordered) CompleteAfter(refills uint64) bool {
	if refills != u.refills {
		return false
	}
	for key := range u.stale {
		u.Apply([]etcd.Op{{Key: key, Delete: true}})
	}
	clear(u.stale)
	return true
}

func (u *unordered) AwaitKey(key string, done func()) bool {
	if _, ok := u.pending[key]; !ok {
		return false
	}
	u.onKey[key] = append(u.onKey[key], done)
	return true
}

func (u *unordered) Await(done func()) bool {
	keys := map[string]struct{}{}
	for key := range u.pending {
		keys[key] = struct{}{}
	}
	if len(keys) > 0 {
		u.onAll = append(u.onAll, waiting{keys, done})
	}
	return len(keys) > 0
}

// commit makes what is pending for a key.
func (u *unordered) commit(key string) etcd.Op {
	op := u.pending[key]
	delete(u.pending, key)
	delete(u.lost, key)
	if op.Delete {
		delete(u.committed, key)
	} else {
		u.committed[key] = string(op.Value)
	}
	u.tell(key)
	return op
}

func (u *unordered) tell(key string) {
	for _, done := range u.onKey[key] {
		done()
	}
	delete(u.onKey, key)
	u.onAll = slices.DeleteFunc(u.onAll, func(w waiting) bool {
		delete(w.keys, key)
		if len(w.keys) == 0 {
			w.done()
		}
		return len(w.keys) == 0
	})
}

// TestAnyOrderOfCommits has what is queued committed in any order. No endpoint that
// moves is in neither place, and no identity goes before an endpoint that is pushed
// with it, whether it was by this process or by an earlier one.
func TestAnyOrderOfCommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := emptyWorld(t)
		var (
			scopes  map[placeName]*unordered
			export  *Exporter
			changes statedb.ChangeIterator[*state.Namespace]
			// missing are the keys that have had a reason to be missing since all
			// was settled.
			missing, unknown = map[string]bool{}, map[string]bool{}
			// older is what there was when all was settled, and asked are the places
			// that the exporter isn't asked for yet although they are lost.
			older map[placeName]map[string]string
			asked []placeName
		)
		look := func(all bool) {
			txn := w.tables.ReadTxn()
			for _, key := range someEndpoints() {
				missing[key] = missing[key] && !all || w.mayBeAbsent(txn, key)
			}
			for _, id := range someIdentities {
				key := wire.IdentityKey(id)
				unknown[key] = unknown[key] && !all || w.mayBeUnknown(txn, key)
			}
		}
		start := func() {
			w.flags = drawFlags(t)
			old := scopes
			asked = nil
			scopes = map[placeName]*unordered{}
			export = newExporter(quietly(), w.db, w.tables.Tables(), localName, Options{}, w.flags.filters(),
				func(name placeName, _ func([]string)) scope {
					left := map[string]string{}
					if old[name] != nil {
						left = old[name].committed
					}
					scopes[name] = newUnordered(left)
					return scopes[name]
				})
			var err error
			changes, err = export.follow()
			require.NoError(t, err)
			look(false)
		}
		round := func() {
			require.NoError(t, export.round(context.Background(), changes, statedb.NewWatchSet()))
		}
		// lose swaps the etcd for an empty one or for one with older data. What is lost
		// with it may be missing, and what is already on its way to be deleted.
		lose := func() {
			left := older
			if rapid.Bool().Draw(t, "empty") {
				left = nil
			}
			for _, resource := range wire.Resources {
				for _, onDemand := range []bool{false, true} {
					name := placeName{resource, onDemand}
					s := scopes[name]
					if s == nil {
						continue
					}
					s.lose(left[name])
					asked = append(asked, name)
					for key, op := range s.pending {
						if !op.Delete {
							continue
						}
						switch resource {
						case wire.Endpoints:
							missing[key] = true
						case wire.Identities:
							unknown[key] = true
						}
					}
				}
			}
			for _, key := range someEndpoints() {
				_, here := left[placeName{wire.Endpoints, false}][key]
				_, there := left[placeName{wire.Endpoints, true}][key]
				missing[key] = missing[key] || !here && !there
			}
			// Identities first: who isn't told yet of a loss can't go by it.
			asked = slices.DeleteFunc(asked, func(name placeName) bool {
				if name == (placeName{wire.Identities, false}) {
					export.inbox.refill(name, nil)
					return true
				}
				return false
			})
		}
		pushed, lookups := placeName{wire.Endpoints, false}, placeName{wire.Endpoints, true}
		commit := func(name placeName, key string) {
			if op := scopes[name].commit(key); !op.Delete {
				return
			}
			switch name {
			case pushed, lookups:
				_, here := scopes[pushed].committed[key]
				_, there := scopes[lookups].committed[key]
				require.True(t, here || there || missing[key], "endpoint %s is in neither place", key)
			case placeName{wire.Identities, false}:
				for endpoint, value := range scopes[pushed].committed {
					ep, err := wire.DecodeEndpoint(endpoint, []byte(value), func(b []byte) string { return string(b) })
					require.NoError(t, err)
					require.True(t, unknown[key] || wire.IdentityKey(ep.Identity) != key, "identity %s goes before endpoint %s", key, endpoint)
				}
			}
		}
		pending := func() (all []func()) {
			for _, resource := range wire.Resources {
				for _, onDemand := range []bool{false, true} {
					name := placeName{resource, onDemand}
					if scopes[name] == nil {
						continue
					}
					for _, key := range slices.Sorted(maps.Keys(scopes[name].pending)) {
						all = append(all, func() { commit(name, key) })
					}
				}
			}
			for i, name := range asked {
				all = append(all, func() {
					asked = slices.Delete(slices.Clone(asked), i, i+1)
					export.inbox.refill(name, nil)
				})
			}
			return all
		}
		settle := func() {
			round()
			for rounds := 0; ; rounds++ {
				require.Less(t, rounds, 100, "it doesn't settle")
				all := pending()
				if len(all) == 0 && export.inbox.news.isEmpty() {
					break
				}
				for len(all) > 0 {
					rapid.SampledFrom(all).Draw(t, "commit")()
					all = pending()
				}
				round()
			}
			want := w.fresh()
			got := map[string]string{}
			for name, s := range scopes {
				for key, value := range s.committed {
					got[prefixOf(name)+key] = value
				}
			}
			require.Equal(t, want, got)
			look(true)
			if export.uses != nil {
				require.Empty(t, export.uses.departing)
				require.Empty(t, export.uses.from)
			}
			for _, f := range export.followers {
				for _, p := range f.places() {
					require.Empty(t, p.awaited)
				}
			}
			older = map[placeName]map[string]string{}
			for name, s := range scopes {
				older[name] = maps.Clone(s.committed)
			}
		}

		start()
		look(true)
		w.populate()
		for range rapid.IntRange(5, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 19).Draw(t, "step") {
			case 0:
				start()
			case 1:
				settle()
			case 2:
				lose()
			case 3, 4, 5, 6, 7:
				if all := pending(); len(all) > 0 {
					rapid.SampledFrom(all).Draw(t, "commit")()
				}
			case 8, 9, 10, 11, 12:
				round()
			default:
				func() {
					tx := w.tables.Begin()
					defer tx.Abort() // rapid gives up a run by a panic
					for range rapid.IntRange(1, 4).Draw(t, "changes") {
						w.change(t, tx)
					}
					tx.Commit()
				}()
				look(false)
			}
		}
		settle()
	})
}

// populate fills the tables with what there is at the beginning.
func (w *world) populate() {
	tx := w.tables.Begin()
	defer tx.Commit()
	for _, namespace := range someNamespaces {
		tx.UpsertNamespace(state.Namespace{Name: namespace})
		tx.UpsertService(w.local, service(namespace, "web", true))
		tx.UpsertServiceExport(w.local, serviceExport(namespace, "web"))
	}
	for _, id := range someIdentities {
		tx.UpsertIdentity(w.local, wire.Identity{ID: id, Labels: fmt.Sprintf("k8s:%s=%s;", wire.LabelNamespace, someNamespaces[(id-200000)/10])})
	}
	for ns, namespace := range someNamespaces {
		for pod, name := range somePods {
			tx.UpsertEndpoint(w.local, state.Owner{Object: "endpoint/" + namespace + "/" + name}, wire.Endpoint{
				Prefix: state.PrefixOf(address(ns, pod, false, false)), Identity: 200000 + uint32(10*ns), Namespace: namespace, Pod: name,
			})
		}
	}
	tx.UpsertWorkload(state.Workload{Namespace: someNamespaces[0], Pod: somePods[0],
		Workload: filter.ParseWorkload(nil, map[string]string{filter.SyncKey: "true"})})
}

// unorderedRig is a rig where pods opt in, and commits are made by the test.
type unorderedRig struct {
	*rig
	unordered map[placeName]*unordered
}

func newUnorderedRig(t testing.TB, mode filter.SyncMode) *unorderedRig {
	r := &unorderedRig{rig: newRig(t, Options{}), unordered: map[placeName]*unordered{}}
	by := r.export.workloads.filters
	by.workload.Mode = mode
	r.export = newExporter(quietly(), r.export.db, r.writer.Tables(), localName, Options{}, by,
		func(name placeName, _ func([]string)) scope {
			r.unordered[name] = newUnordered(map[string]string{})
			return r.unordered[name]
		})
	r.begin()
	return r
}

// settle commits until there is nothing left to commit.
func (r *unorderedRig) settle() {
	r.round()
	for again := true; again; r.round() {
		again = false
		for _, s := range r.unordered {
			for key := range s.pending {
				s.commit(key)
				again = true
			}
		}
	}
}
