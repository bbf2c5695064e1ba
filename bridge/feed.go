// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
)

// feed tells those who follow a cluster in one table what there is, and what changes. One
// job reads the table, however many follow: a change is handed to those of its cluster.
type feed[T any] struct {
	db    *statedb.DB
	table statedb.Table[T]
	// cluster is whose a row is, and key what it is called there.
	cluster func(T) string
	key     func(T) string
	// list gives the rows of a cluster.
	list func(txn statedb.ReadTxn, cluster string) iter.Seq2[T, statedb.Revision]

	mu        sync.Mutex
	followers map[string]map[*follower[T]]struct{}
	// fresh are followers, by their clusters, that weren't given their list yet.
	fresh map[*follower[T]]string
	wake  chan struct{}
}

// follower is one who follows a cluster: what it has not been told yet, by key. That is
// bounded by the number of keys.
type follower[T any] struct {
	mu      sync.Mutex
	pending map[string]change[T]
	listed  bool
	wake    chan struct{}
}

type change[T any] struct {
	row     T
	deleted bool
}

func newFeed[T any](db *statedb.DB, table statedb.Table[T], cluster, key func(T) string,
	list func(statedb.ReadTxn, string) iter.Seq2[T, statedb.Revision]) *feed[T] {
	return &feed[T]{
		db: db, table: table, cluster: cluster, key: key, list: list,
		followers: map[string]map[*follower[T]]struct{}{},
		fresh:     map[*follower[T]]string{},
		wake:      make(chan struct{}, 1),
	}
}

// run reads the table until ctx ends.
func (f *feed[T]) run(ctx context.Context, health cell.Health) error {
	wtxn := f.db.WriteTxn(f.table)
	changes, err := f.table.Changes(wtxn)
	wtxn.Commit()
	if err != nil {
		return fmt.Errorf("watching %s: %w", f.table.Name(), err)
	}
	health.OK("Handing changes on")
	for {
		txn := f.db.ReadTxn()
		batch, changed := changes.Next(txn)
		f.mu.Lock()
		for c := range batch {
			for to := range f.followers[f.cluster(c.Object)] {
				to.add(f.key(c.Object), change[T]{c.Object, c.Deleted})
			}
		}
		// Of the same moment: the next batch is what comes after their list.
		for to, cluster := range f.fresh {
			for row := range f.list(txn, cluster) {
				to.add(f.key(row), change[T]{row, false})
			}
			to.begin()
			if f.followers[cluster] == nil {
				f.followers[cluster] = map[*follower[T]]struct{}{}
			}
			f.followers[cluster][to] = struct{}{}
		}
		clear(f.fresh)
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-f.wake:
		}
	}
}

// follow begins to follow a cluster, until stop is called.
func (f *feed[T]) follow(cluster string) (to *follower[T], stop func()) {
	to = &follower[T]{pending: map[string]change[T]{}, wake: make(chan struct{}, 1)}
	f.mu.Lock()
	f.fresh[to] = cluster
	f.mu.Unlock()
	wake(f.wake)
	return to, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.fresh, to)
		delete(f.followers[cluster], to)
		if len(f.followers[cluster]) == 0 {
			delete(f.followers, cluster)
		}
	}
}

// add has the follower told of a change; the last one of a key counts.
func (to *follower[T]) add(key string, c change[T]) {
	to.mu.Lock()
	to.pending[key] = c
	to.mu.Unlock()
	wake(to.wake)
}

// begin says that the list is complete.
func (to *follower[T]) begin() {
	to.mu.Lock()
	to.listed = true
	to.mu.Unlock()
	wake(to.wake)
}

// take gives what is to be told, and whether the list is in that or before it.
func (to *follower[T]) take() (pending map[string]change[T], listed bool) {
	to.mu.Lock()
	defer to.mu.Unlock()
	if len(to.pending) == 0 {
		return nil, to.listed // and not the map, which is written to
	}
	pending, to.pending = to.pending, map[string]change[T]{}
	return pending, to.listed
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
