// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCanaryAtAnotherEtcd swaps the etcd for an empty one in the very moment in which
// the canary is made, so that its commit is the first to arrive there, as often as not.
func TestCanaryAtAnotherEtcd(t *testing.T) {
	for round := range 10 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			// One ID, so that the swap isn't seen by that.
			p := newProxy(t, startServer(t, ServerConfig{Token: "same"}))
			second := startServer(t, ServerConfig{Token: "same"})
			c := clientAt(t, time.Minute, p.url())
			w := startWriter(t, c)
			want := numbered(50, "v")
			var s *Scope
			swapped := false
			s = w.Scope(ScopeConfig{
				Prefix: "p/", Canary: "synced/p", Lease: round%2 == 0,
				CanaryValue: func() []byte {
					if !swapped {
						swapped = true
						_, reconnected := c.Generation()
						p.set(second)
						p.cut()
						<-reconnected
					}
					return []byte("done")
				},
				Refill: func([]string) {
					s.Apply(ops(want))
					s.Complete()
				},
			})
			s.Apply(ops(want))
			s.Complete()

			direct := clientAt(t, time.Minute, second.URL())
			canary := <-direct.etcd.Watch(t.Context(), "synced/p", clientv3.WithRev(1))
			require.NoError(t, canary.Err())
			before, err := direct.etcd.Get(t.Context(), "p/", clientv3.WithPrefix(), clientv3.WithRev(canary.Events[0].Kv.ModRevision))
			require.NoError(t, err)
			require.Len(t, before.Kvs, len(want), "the canary was there before its keys")
		})
	}
}

// TestCanaryAfterForeignHands has somebody delete the key by which the Writer knows its
// etcd: the canary is written all the same.
func TestCanaryAfterForeignHands(t *testing.T) {
	c := clientAt(t, time.Minute, startServer(t, ServerConfig{}).URL())
	w := startWriter(t, c)
	s := w.Scope(leased("p/", func([]string) { t.Error("nothing was lost") }))
	s.Apply(ops(numbered(1, "v")))
	require.NoError(t, s.Barrier(t.Context()))
	for key := range numbered(1, "v") {
		remove(t, c, "p/"+key)
	}
	s.Complete()
	eventuallyContent(t, c, "synced/", map[string]string{"p": "done"})
}

// TestEtcdSwappedBeforeTheFirstCommit loads a Scope from one etcd, and then finds an
// empty one of the same ID: what was loaded is written, and the canary after it.
func TestEtcdSwappedBeforeTheFirstCommit(t *testing.T) {
	for _, token := range []string{"", "same"} {
		t.Run("token "+token, func(t *testing.T) {
			first, second := startServer(t, ServerConfig{Token: token}), startServer(t, ServerConfig{Token: token})
			want := numbered(3, "v")
			before := clientAt(t, time.Minute, first.URL())
			for key, value := range want {
				put(t, before, "p/"+key, value)
			}
			p := newProxy(t, first)
			c := clientAt(t, time.Minute, p.url())
			w := startWriter(t, c)
			var s *Scope
			s = w.Scope(ScopeConfig{
				Prefix: "p/", Canary: "synced/p", CanaryValue: func() []byte { return []byte("done") },
				Refill: func([]string) {
					s.Apply(ops(want))
					s.Complete()
				},
			})
			require.NoError(t, s.Load(t.Context()))
			_, reconnected := c.Generation()
			p.set(second)
			p.cut()
			<-reconnected
			s.Apply(ops(want)) // all of which is there already, it would seem
			s.Complete()
			direct := clientAt(t, time.Minute, second.URL())
			eventuallyContent(t, direct, "synced/", map[string]string{"p": "done"})
			require.Equal(t, want, content(t, direct, "p/"))
		})
	}
}
