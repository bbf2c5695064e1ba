// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
	"github.com/waggle-mesh/waggle/testing/mesh"
)

// watchedAgent follows the tables of endpoints and identities by their changes, one
// transaction after the other.
type watchedAgent struct {
	*mesh.Hive
	db     *statedb.DB
	tables state.Tables

	mu              sync.Mutex
	endpointChanges statedb.ChangeIterator[*state.Endpoint]
	identityChanges statedb.ChangeIterator[*state.Identity]
	endpoints       map[string]uint32 // identities by address
	identities      map[uint32]bool
	unknown         []string
	transactions    int
}

// follow begins with tables that are empty.
func (a *watchedAgent) follow(db *statedb.DB, writer *state.Writer) error {
	a.db, a.tables = db, writer.Tables()
	wtxn := db.WriteTxn(a.tables.Endpoints, a.tables.Identities)
	defer wtxn.Commit()
	endpoints, err := a.tables.Endpoints.Changes(wtxn)
	if err != nil {
		return err
	}
	identities, err := a.tables.Identities.Changes(wtxn)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endpointChanges, a.identityChanges = endpoints, identities
	return nil
}

// look takes note of what the last transaction has changed.
func (a *watchedAgent) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identityChanges == nil {
		return // it isn't assembled yet
	}
	txn, changed := a.db.ReadTxn(), false
	endpoints, _ := a.endpointChanges.Next(txn)
	for change := range endpoints {
		changed = true
		if address := change.Object.Prefix().String(); change.Deleted {
			delete(a.endpoints, address)
		} else {
			a.endpoints[address] = change.Object.Identity()
		}
	}
	identities, _ := a.identityChanges.Next(txn)
	for change := range identities {
		changed = true
		if change.Deleted {
			delete(a.identities, change.Object.ID)
		} else {
			a.identities[change.Object.ID] = true
		}
	}
	if !changed {
		return
	}
	a.transactions++
	for address, identity := range a.endpoints {
		if !a.identities[identity] {
			a.unknown = append(a.unknown, fmt.Sprintf("%d: %s has %d", a.transactions, address, identity))
		}
	}
}

// result gives the endpoints that were there without their identity, and how many
// transactions have changed anything.
func (a *watchedAgent) result() (unknown []string, transactions int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unknown, a.transactions
}

// eachTransaction has the agent looked at when a transaction begins that may change
// both tables. It holds their locks then, so that what is there is what the one before
// it has made: none is missed.
type eachTransaction struct {
	statedb.Metrics
	agent *watchedAgent
}

// WriteTxnTotalAcquisition implements statedb.Metrics.
func (e *eachTransaction) WriteTxnTotalAcquisition(handle string, tables []string, acquire time.Duration) {
	e.Metrics.WriteTxnTotalAcquisition(handle, tables, acquire)
	if slices.Contains(tables, "endpoints") && slices.Contains(tables, "identities") {
		e.agent.look()
	}
}

// watchPlaces watches an etcd from its beginning. The function that it gives ends that,
// and says at which revisions which of the keys, named without their places, were gone
// from all places below which they had been.
func watchPlaces(t *testing.T, at *mesh.Etcd, places []string, keys map[string]bool) (vanished func() []string) {
	const witness = wire.StateRoot + "witness"
	ctx, cancel := context.WithCancel(context.Background())
	watch := at.Client().Etcd().Watch(clientv3.WithRequireLeader(ctx), wire.StateRoot, clientv3.WithPrefix(), clientv3.WithRev(1))
	var (
		ended   sync.WaitGroup
		gone    []string
		failure error
	)
	t.Cleanup(func() { cancel(); ended.Wait() })
	ended.Go(func() {
		in := map[string]int{} // how many places each key is in
		for resp := range watch {
			if failure = resp.Err(); failure != nil {
				return
			}
			// A response has all events of its revisions.
			for events := resp.Events; len(events) > 0; {
				revision, end := events[0].Kv.ModRevision, 0
				var left []string
				for ; end < len(events) && events[end].Kv.ModRevision == revision; end++ {
					event := events[end]
					if string(event.Kv.Key) == witness {
						return
					}
					key := nameOf(string(event.Kv.Key), places)
					switch {
					case !keys[key]:
					case event.Type == clientv3.EventTypeDelete:
						in[key]--
						left = append(left, key)
					case event.IsCreate():
						in[key]++
					}
				}
				for _, key := range left {
					if in[key] == 0 {
						gone = append(gone, fmt.Sprintf("%s at revision %d", key, revision))
					}
				}
				events = events[end:]
			}
		}
		failure = errors.New("the watch ended early")
	})
	return func() []string {
		t.Helper()
		_, err := at.Client().Etcd().Put(ctx, witness, "")
		require.NoError(t, err)
		ended.Wait()
		require.NoError(t, failure)
		return gone
	}
}

// nameOf is a key without the place that it is in; empty if it is in none.
func nameOf(key string, places []string) string {
	for _, place := range places {
		if name, ok := strings.CutPrefix(key, place); ok {
			return name
		}
	}
	return ""
}
