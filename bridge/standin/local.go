// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"

	"github.com/waggle-mesh/waggle/cells/state"
)

// localPods knows the pods, of the table and of what this agent has written, whose
// endpoints name the address of a node as theirs, for the nodes that were asked for, of
// which there is one. Upstream asks every ten seconds for each pod of its node, so that a
// walk through all of the cluster won't do, and an index in the table would cost as much
// for each endpoint of the cluster.
type localPods struct {
	db    *statedb.DB
	table statedb.Table[*state.Endpoint]
	// written has those that aren't in the table.
	written *written

	mu sync.Mutex
	// pods are by node and prefix.
	pods map[netip.Addr]map[netip.Prefix]pod
}

type pod struct{ namespace, name string }

func newLocalPods(db *statedb.DB, table statedb.Table[*state.Endpoint], written *written) *localPods {
	return &localPods{db: db, table: table, written: written, pods: map[netip.Addr]map[netip.Prefix]pod{}}
}

// follow is a job.
func (l *localPods) follow(ctx context.Context, health cell.Health) error {
	iterator, err := follow(l.db, l.table)
	if err != nil {
		return err
	}
	last := -1
	for {
		changes, more := iterator.Next(l.db.ReadTxn())
		l.mu.Lock()
		for change := range changes {
			if change.Deleted && podOfRow(change.Object) != "" {
				l.written.gone(pod{namespace: change.Object.Namespace(), name: change.Object.Pod()})
			}
			for node, pods := range l.pods {
				if change.Deleted {
					delete(pods, change.Object.Prefix())
				} else {
					note(pods, node, change.Object)
				}
			}
		}
		addresses := 0
		for _, pods := range l.pods {
			addresses += len(pods)
		}
		l.mu.Unlock()
		if addresses != last {
			health.OK(fmt.Sprintf("Following endpoints, %d addresses of this node", addresses))
			last = addresses
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// note brings what is known of one row up to date.
func note(pods map[netip.Prefix]pod, node netip.Addr, row *state.Endpoint) {
	if row.HostIP() == node && podOfRow(row) != "" {
		pods[row.Prefix()] = pod{namespace: row.Namespace(), name: row.Pod()}
	} else {
		delete(pods, row.Prefix())
	}
}

// on are the pods of a node, each once. The first question for a node walks through the
// table.
func (l *localPods) on(node netip.Addr) []pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	pods, ok := l.pods[node]
	if !ok {
		pods = map[netip.Prefix]pod{}
		for row := range l.table.All(l.db.ReadTxn()) {
			note(pods, node, row)
		}
		l.pods[node] = pods
	}
	found := map[pod]struct{}{}
	for _, p := range pods {
		found[p] = struct{}{}
	}
	l.written.on(node, found)
	return slices.Collect(maps.Keys(found))
}
