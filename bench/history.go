// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Writes are what was written to the local etcd, by what it was: each write of a
// key counts, of the same value as before or not, and wakes every agent.
type Writes struct {
	// Commits is the number of revisions, those of heartbeats not counted.
	Commits int `json:"commits"`
	// Puts and Deletes are of keys below cilium/cache/.
	Puts    int `json:"puts"`
	Deletes int `json:"deletes"`
	// Canaries and Configs are writes and deletions of canaries and of clusters'
	// configs; Others of anything else but heartbeats, as locks.
	Canaries int `json:"canaries"`
	Configs  int `json:"configs"`
	Others   int `json:"others"`
	// Heartbeats are the benchmark's own, or the subject's.
	Heartbeats int `json:"heartbeats"`
}

// All are all writes but heartbeats.
func (w Writes) All() int { return w.Puts + w.Deletes + w.Canaries + w.Configs + w.Others }

// add counts the events of one response.
func (w *Writes) add(events []*clientv3.Event, last int64) (revision int64) {
	for _, ev := range events {
		key := string(ev.Kv.Key)
		if key == wire.HeartbeatKey {
			w.Heartbeats++
			continue
		}
		if ev.Kv.ModRevision != last {
			last = ev.Kv.ModRevision
			w.Commits++
		}
		switch {
		case strings.HasPrefix(key, wire.CacheRoot) && ev.Type == clientv3.EventTypeDelete:
			w.Deletes++
		case strings.HasPrefix(key, wire.CacheRoot):
			w.Puts++
		case strings.HasPrefix(key, wire.SyncedRoot):
			w.Canaries++
		case strings.HasPrefix(key, wire.ClusterConfigPrefix):
			w.Configs++
		default:
			w.Others++
		}
	}
	return last
}

const (
	// calm is how long there is no write at an etcd at which all is done.
	calm = time.Second
	// calmAgain is the time between two questions for its revision.
	calmAgain = 100 * time.Millisecond
)

// waitCalm waits until nothing was written to an etcd for a while, and gives its
// revision. Whoever is ready may have something left to write.
func waitCalm(ctx context.Context, local *etcdProcess) (revision int64, err error) {
	for since := time.Now(); ; {
		now, err := revisionOf(ctx, local)
		if err != nil {
			return 0, err
		}
		if now != revision {
			revision, since = now, time.Now()
		} else if time.Since(since) > calm {
			return revision, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(calmAgain):
		}
	}
}

func revisionOf(ctx context.Context, e *etcdProcess) (int64, error) {
	resp, err := e.client.Etcd().Get(ctx, wire.HeartbeatKey, clientv3.WithKeysOnly())
	if err != nil {
		return 0, fmt.Errorf("reading the revision of %s: %w", e.Name(), err)
	}
	return resp.Header.Revision, nil
}

// writesBetween counts what was written after one revision up to another, which
// the etcd has by now: it is read from its history, so that nothing of it has to
// be counted while it is measured.
func writesBetween(ctx context.Context, e *etcdProcess, after, until int64) (w Writes, err error) {
	if after == until {
		return w, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last int64
	// There is an event of each revision, so that the last one comes.
	for resp := range e.client.Etcd().Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(after+1)) {
		if err := resp.Err(); err != nil {
			return w, fmt.Errorf("reading the history of %s: %w", e.Name(), err)
		}
		events := resp.Events
		for len(events) > 0 && events[len(events)-1].Kv.ModRevision > until {
			events = events[:len(events)-1]
		}
		last = w.add(events, last)
		if n := len(resp.Events); n > 0 && resp.Events[n-1].Kv.ModRevision >= until {
			return w, nil
		}
	}
	return w, fmt.Errorf("reading the history of %s: %w", e.Name(), errors.Join(errors.New("it ended"), context.Cause(ctx)))
}
