// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/cilium/pkg/k8s"
	ciliumv2 "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/v2"
	k8stypes "github.com/cilium/cilium/pkg/k8s/types"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	k8serrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/waggle-mesh/waggle/cells/state"
)

// writtenInterval is how often an endpoint that this agent has written, and that the
// table doesn't have, is asked for at the API server: somebody else may have deleted it.
const writtenInterval = time.Minute

// written are the CiliumEndpoints that this agent has written, or that the API server
// has told it of: those of its node's pods. The table may not have one, be it that the
// in-cluster cache is away or that its address is another owner's; upstream, which looks
// for each every ten seconds, would then fetch and write it again and again.
type written struct {
	db    *statedb.DB
	table statedb.Table[*state.Endpoint]
	// doubt has the check run now.
	doubt job.Trigger

	mu        sync.Mutex
	endpoints map[pod]writtenEndpoint
}

// writtenEndpoint is what the API server said of one.
type writtenEndpoint struct {
	object *k8stypes.CiliumEndpoint
	uid    types.UID
	node   netip.Addr
	at     time.Time
}

func newWritten(db *statedb.DB, table statedb.Table[*state.Endpoint]) *written {
	return &written{db: db, table: table, doubt: job.NewTrigger(), endpoints: map[pod]writtenEndpoint{}}
}

// add is what the API server has just said of an endpoint.
func (w *written) add(endpoint *ciliumv2.CiliumEndpoint) {
	e := writtenEndpoint{
		object: k8s.ConvertCoreCiliumEndpointToTypesCiliumEndpoint(k8s.ConvertCEPToCoreCEP(endpoint), endpoint.Namespace),
		uid:    endpoint.UID, at: time.Now(),
	}
	e.object.UID = newEndpoint(endpoint.Namespace, endpoint.Name).UID
	if e.object.Networking != nil {
		// One that names no node is on none.
		e.node, _ = netip.ParseAddr(e.object.Networking.NodeIP)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endpoints[pod{namespace: endpoint.Namespace, name: endpoint.Name}] = e
}

// forget is called for one that has gone, or is to go. If a UID is given, an endpoint
// with another one has taken its place.
func (w *written) forget(p pod, uid *types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.endpoints[p]; ok && (uid == nil || *uid == e.uid) {
		delete(w.endpoints, p)
	}
}

// gone is that the table has lost an address of an endpoint: whether it was deleted, the
// API server is asked at once.
func (w *written) gone(p pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.endpoints[p]; ok {
		e.at = time.Time{}
		w.endpoints[p] = e
		w.doubt.Trigger()
	}
}

// on notes the pods of a node.
func (w *written) on(node netip.Addr, found map[pod]struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, e := range w.endpoints {
		if e.node == node {
			found[p] = struct{}{}
		}
	}
}

func (w *written) get(p pod) (*k8stypes.CiliumEndpoint, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.endpoints[p]
	return e.object, ok
}

// late gives those that the table doesn't have, and of which the API server has said
// nothing since a moment.
func (w *written) late(before time.Time) (pods []pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	txn := w.db.ReadTxn()
	for p, e := range w.endpoints {
		if !e.at.Before(before) {
			continue
		}
		if _, _, has := w.table.Get(txn, state.LocalEndpointsByPod(p.namespace, p.name)); !has {
			pods = append(pods, p)
		}
	}
	return pods
}

// check asks for what is late, by get, and forgets what is no longer there.
func (w *written) check(ctx context.Context, before time.Time, get func(context.Context, pod) (*ciliumv2.CiliumEndpoint, error)) {
	for _, p := range w.late(before) {
		switch endpoint, err := get(ctx, p); {
		case err == nil:
			w.add(endpoint)
		case k8serrors.IsNotFound(err):
			w.forget(p, nil)
		default:
			// Nobody knows. The next round asks again.
		}
	}
}
