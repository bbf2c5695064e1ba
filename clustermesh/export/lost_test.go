// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/filter"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/relay"
)

// pair is two etcds, of which one is behind an address, and what connects to that.
type pair struct {
	relay   *relay.Relay
	servers [2]*etcd.Server
	direct  [2]*etcd.Client
	now     int
	through *etcd.Client
}

func newPair(t *testing.T) *pair {
	p := &pair{}
	connect := func(url string) *etcd.Client {
		options := etcd.DefaultOptions
		options.QPS, options.MaxTxnOps = 100_000, 16
		client, err := etcd.NewClient(quietly(), etcd.ClientConfig{Endpoints: []string{url}, LeaseTTL: time.Hour, Options: options})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		return client
	}
	for i := range p.servers {
		server, stop := startServer(t, "http://127.0.0.1:0")
		t.Cleanup(stop)
		p.servers[i], p.direct[i] = server, connect(server.URL())
	}
	var err error
	p.relay, err = relay.Listen("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(p.relay.Close)
	p.aim(0)
	p.through = connect("http://" + p.relay.Address())
	return p
}

// aim has one of the two behind the address, and breaks the connections to the other.
func (p *pair) aim(i int) {
	p.now = i
	p.relay.Aim(strings.TrimPrefix(p.servers[i].URL(), "http://"))
}

// clear deletes all that one of the two has.
func (p *pair) clear(t rapid.TB, i int) {
	_, err := p.direct[i].Etcd().Delete(context.Background(), wire.BasePrefix, clientv3.WithPrefix())
	require.NoError(t, err)
}

// world is one that writes to the pair, both empty. No exporter runs yet.
func (p *pair) world(t rapid.TB) *world {
	p.clear(t, 1-p.now)
	w := idleWorld(t, p.direct[p.now], p.through)
	w.heartbeat = true
	return w
}

// swap swaps the etcd for the other one: as that was left, or empty. The Writer has
// written to the present one by then: it knows an etcd by what that answers to a commit,
// and couldn't tell that it comes back to one which was emptied while it wasn't looking.
func (p *pair) swap(w *world, empty bool) {
	w.await("the heartbeat", w.beats)
	next := 1 - p.now
	_, err := p.direct[next].Etcd().Delete(context.Background(), wire.HeartbeatKey)
	require.NoError(w.t, err)
	if empty {
		p.clear(w.t, next)
	}
	p.aim(next)
	w.client = p.direct[next]
}

// beats says whether there is a heartbeat.
func (w *world) beats() bool { return len(w.content(wire.HeartbeatKey)) == 1 }

// TestLostKeysComeBack has etcd lose leases with all that is on them, pushed and on
// demand, or swapped for an empty one or one with older data, while pods, endpoints,
// identities and namespaces change, tables become complete, keys move between the two
// places, and exporters are restarted with other flags. What settles is what a fresh
// start gives, canaries included.
func TestLostKeysComeBack(t *testing.T) {
	p := newPair(t)
	rapid.Check(t, func(t *rapid.T) {
		w := p.world(t)
		for _, table := range []wire.Resource{state.Namespaces, state.Workloads, wire.Endpoints, wire.Identities} {
			if rapid.IntRange(0, 2).Draw(t, "late") == 0 {
				w.delay(table)
			}
		}
		w.start(drawFlags(t))
		defer func() { w.stop() }()
		w.populate()
		for range rapid.IntRange(3, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 11).Draw(t, "step") {
			case 0:
				w.stop()
				w.start(drawFlags(t))
			case 1:
				w.settle()
			case 2:
				w.loseLeases()
			case 3, 4:
				p.swap(w, rapid.Bool().Draw(t, "empty"))
			case 5:
				w.initialize(min(1, len(w.late)))
			default:
				changes := rapid.IntRange(1, 6).Draw(t, "changes")
				w.write(func(tx *state.Txn) {
					for range changes {
						w.change(t, tx)
					}
				})
			}
		}
		w.settle()
	})
}

// TestEtcdIsSwappedDuringTheStart has the etcd swapped for an empty one while the
// exporter waits for tables, and nothing but the heartbeat is written.
func TestEtcdIsSwappedDuringTheStart(t *testing.T) {
	p := newPair(t)
	for _, mode := range []filter.SyncMode{filter.SyncAll, filter.SyncOptIn} {
		t.Run(string(mode), func(t *testing.T) {
			w := p.world(t)
			w.delay(state.Namespaces, state.Workloads)
			w.start(flags{mode: mode, region: "eu", defaultGlobal: true})
			defer func() { w.stop() }()
			w.populate()
			p.swap(w, true)
			w.await("the heartbeat in the other etcd", w.beats)
			w.await("the exporter to be told", func() bool {
				inbox := w.export.inbox
				inbox.mu.Lock()
				defer inbox.mu.Unlock()
				return len(inbox.losses) == len(w.export.followers)+2 && inbox.news.isEmpty()
			})
			w.settle()
		})
	}
}

// TestLossDuringTheStart has keys of every place lost before it is known what leaves the
// cluster.
func TestLossDuringTheStart(t *testing.T) {
	for _, mode := range []filter.SyncMode{filter.SyncAll, filter.SyncOptIn} {
		for _, lost := range [][]string{{"10.0.0.1", "200000", "n1", "don/web"}, nil} {
			r := newRigOf(t, Options{}, mode, "eu")
			r.begin()
			r.write(func(tx *state.Txn) {
				r.namespace(tx, "don", true)
				tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
				tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.2", "don", "y"))
				tx.UpsertIdentity(r.local, identity(200000, "don"))
				tx.UpsertNode(r.local, wire.Node{Name: "n1", Cluster: localName, ClusterID: localID})
				tx.UpsertService(r.local, service("don", "web", true))
				tx.UpsertServiceExport(r.local, serviceExport("don", "web"))
				tx.UpsertWorkload(optsIn("don", "x"))
			})
			r.initialize(wire.Endpoints, wire.Identities, wire.Nodes, wire.Services, wire.ServiceExports)
			loseAll := func() {
				for resource := range r.scopes {
					r.lose(placeName{resource, false}, lost)
				}
				for resource := range r.lookups {
					r.lose(placeName{resource, true}, lost)
				}
				r.round()
			}
			r.round()
			loseAll()
			r.initialize(state.Namespaces)
			r.round()
			loseAll()
			r.initialize(state.Workloads)
			r.round()
			for resource, s := range r.scopes {
				require.True(t, s.IsComplete(), "%s in mode %s", resource, mode)
				require.NotZero(t, s.Len(), "%s in mode %s", resource, mode)
			}
			for resource, s := range r.lookups {
				require.True(t, s.IsComplete(), "%s on demand in mode %s", resource, mode)
			}
		}
	}
}

// TestOlderEtcdIsPrunedInOrder swaps the etcd for one with older data. Its owners are
// asked one after the other, and what depends on another place waits for that one to
// have been through the same.
func TestOlderEtcdIsPrunedInOrder(t *testing.T) {
	endpoints, lookups := placeName{wire.Endpoints, false}, placeName{wire.Endpoints, true}
	identities := placeName{wire.Identities, false}
	commit := func(r *unorderedRig, name placeName) {
		for range 3 {
			r.round()
			for key := range r.unordered[name].pending {
				r.unordered[name].commit(key)
			}
		}
	}

	t.Run("an identity that an endpoint had", func(t *testing.T) {
		r := newUnorderedRig(t, filter.SyncOptIn)
		r.write(func(tx *state.Txn) {
			r.namespace(tx, "don", true)
			tx.UpsertIdentity(r.local, identity(200000, "don"))
		})
		r.initializeAll()
		r.settle()
		require.Empty(t, r.unordered[identities].committed)

		older := map[placeName]map[string]string{endpoints: {"10.0.0.1": "x"}, identities: {"200000": "y"}}
		for name, s := range r.unordered {
			s.lose(older[name])
			if name.resource == wire.Identities {
				r.export.inbox.refill(name, nil)
			}
		}
		commit(r, placeName{wire.Identities, true})
		commit(r, identities)
		require.Contains(t, r.unordered[identities].committed, "200000", "the endpoint is there")
		for name := range r.unordered {
			if name.resource != wire.Identities {
				r.export.inbox.refill(name, nil)
			}
		}
		r.settle()
		require.Empty(t, r.unordered[endpoints].committed)
		require.Empty(t, r.unordered[identities].committed)
		require.Len(t, r.unordered[placeName{wire.Identities, true}].committed, 1)
	})

	t.Run("what is no longer on demand", func(t *testing.T) {
		r := newUnorderedRig(t, filter.SyncAll)
		r.write(func(tx *state.Txn) {
			r.namespace(tx, "don", true)
			tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
		})
		r.initializeAll()
		r.settle()

		older := map[placeName]map[string]string{lookups: {"10.0.0.1": "x"}}
		for name, s := range r.unordered {
			s.lose(older[name])
		}
		r.export.inbox.refill(lookups, nil)
		commit(r, lookups)
		require.Contains(t, r.unordered[lookups].committed, "10.0.0.1", "it isn't pushed yet")
		for name := range r.unordered {
			if name != lookups {
				r.export.inbox.refill(name, nil)
			}
		}
		r.settle()
		require.Empty(t, r.unordered[lookups].committed)
		require.Contains(t, r.unordered[endpoints].committed, "10.0.0.1")
	})
}

// TestWaitersAreBounded has a pod, its endpoint and its namespace change again and again
// while nothing is committed.
func TestWaitersAreBounded(t *testing.T) {
	r := newUnorderedRig(t, filter.SyncOptIn)
	r.write(func(tx *state.Txn) {
		r.namespace(tx, "don", true)
		for id := range uint32(4) {
			tx.UpsertIdentity(r.local, identity(200000+id, "don"))
		}
		tx.UpsertEndpoint(r.local, owner, endpoint("10.0.0.1", "don", "x"))
		tx.UpsertWorkload(optsIn("don", "x"))
	})
	r.initializeAll()
	r.settle()
	for i := range 1000 {
		r.write(func(tx *state.Txn) {
			ep := endpoint("10.0.0.1", "don", "x")
			ep.Identity = 200000 + uint32(i%4)
			tx.UpsertEndpoint(r.local, owner, ep)
			r.namespace(tx, "don", i%100 > 3)
			if i/50%2 == 0 {
				tx.DeleteWorkload("don", "x")
			} else {
				tx.UpsertWorkload(optsIn("don", "x"))
			}
		})
		r.round()
		for name, s := range r.unordered {
			for key, waiters := range s.onKey {
				// The one that decides about the key again, and the one of its departures.
				require.LessOrEqual(t, len(waiters), 2, "%v %s", name, key)
			}
		}
	}
	r.settle()
	require.Contains(t, r.unordered[placeName{wire.Endpoints, false}].committed["10.0.0.1"], `"ID":200003`)
	require.Contains(t, r.unordered[placeName{wire.Identities, false}].committed, "200003")
	require.Len(t, r.unordered[placeName{wire.Identities, false}].committed, 1)
	require.Len(t, r.unordered[placeName{wire.Identities, true}].committed, 3)
	require.Empty(t, r.export.uses.from)
	require.Empty(t, r.export.uses.departing)
}

// loseLeases ends all leases that there are. The Writer finds out with its next commit,
// which nothing may call for: the heartbeat is put back, for swap.
func (w *world) loseLeases() {
	w.await("the heartbeat", w.beats)
	defer func() {
		_, err := w.client.Etcd().Put(context.Background(), wire.HeartbeatKey, "")
		require.NoError(w.t, err)
	}()
	leases, err := w.client.Etcd().Leases(context.Background())
	require.NoError(w.t, err)
	for _, lease := range leases.Leases {
		w.revoke(lease.ID)
	}
}

func (w *world) revoke(id clientv3.LeaseID) {
	_, err := w.client.Etcd().Revoke(context.Background(), id)
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		require.NoError(w.t, err)
	}
}
