// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

// Package rollout is what the programs of "waggle bench rollout" share, ours and
// the peer's: many KVStoreMeshes in one process, as one source sees them, and
// when each of them has what the source's next replica says.
package rollout

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Differences are the endpoints in which a replica differs from the one before
// it: the hash of the value by the key below their prefix; 0 is a deletion.
type Differences map[string]uint64

// Hash is that of a value in Differences.
func Hash(value []byte) uint64 { return xxhash.Sum64(value) }

// Write writes them to a file, for NewTracker.
func (d Differences) Write(path string) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("writing differences: %w", err)
	}
	return os.WriteFile(path, raw, 0o600)
}

// Tracker says when all clients have the first state of the source, and when all
// have that of its replica. Its methods are safe for concurrent use.
type Tracker struct {
	out       io.Writer
	want      Differences
	resources int

	mu      sync.Mutex
	ready   bool
	first   []map[string]struct{} // resources listed before that, by client
	again   []map[string]struct{} // and since
	missing []map[string]struct{} // differences, by client
	done    []time.Time           // when a client had all
}

// NewTracker reads the differences from a file. Each client lists so many
// resources. out is told, a line each:
//
//	ready <time>                   all clients have the first state
//	again <first> <median> <last>  when the first, half and all of the clients had
//	                               all differences, and had listed every resource
//	                               again
//
// Times are in nanoseconds since 1970.
func NewTracker(path string, clients, resources int, out io.Writer) (*Tracker, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading differences: %w", err)
	}
	t := &Tracker{out: out, resources: resources}
	if err := json.Unmarshal(raw, &t.want); err != nil {
		return nil, fmt.Errorf("reading differences: %w", err)
	}
	for range clients {
		missing := map[string]struct{}{}
		for key := range t.want {
			missing[key] = struct{}{}
		}
		t.missing = append(t.missing, missing)
		t.first = append(t.first, map[string]struct{}{})
		t.again = append(t.again, map[string]struct{}{})
	}
	return t, nil
}

// Synced is called when a client has listed a resource, and has all of it.
func (t *Tracker) Synced(client int, resource string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready {
		if _, ok := t.again[client][resource]; !ok {
			t.again[client][resource] = struct{}{}
			t.check(client)
		}
		return
	}
	t.first[client][resource] = struct{}{}
	for _, listed := range t.first {
		if len(listed) < t.resources {
			return
		}
	}
	t.ready = true
	fmt.Fprintf(t.out, "ready %d\n", time.Now().UnixNano())
}

// See is called for each endpoint that a client was told of: its key below the
// prefix of endpoints, and its value unless it was deleted.
func (t *Tracker) See(client int, key string, value []byte, deleted bool) {
	want, ok := t.want[key] // which nobody changes
	if !ok || deleted != (want == 0) || !deleted && Hash(value) != want {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.missing[client][key]; ok {
		delete(t.missing[client], key)
		t.check(client)
	}
}

// check is called when a client came a step further. The lock is held.
func (t *Tracker) check(client int) {
	if len(t.missing[client]) > 0 || len(t.again[client]) < t.resources {
		return
	}
	if t.done = append(t.done, time.Now()); len(t.done) < len(t.missing) {
		return
	}
	slices.SortFunc(t.done, time.Time.Compare)
	fmt.Fprintf(t.out, "again %d %d %d\n", t.done[0].UnixNano(), t.done[len(t.done)/2].UnixNano(), t.done[len(t.done)-1].UnixNano())
}
