// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"

	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Local looks a question up in the etcd that the agent follows the cluster by: that of
// its KVStoreMesh, which has what is pushed, or the cluster's own, which also has what
// is to be looked up.
type Local struct {
	mesh  connections
	known func(identity uint32) bool
	// pushed says of a cluster that the tables have what it pushes, and what comes comes by
	// itself: a copy has nothing else, and isn't asked then. Nil: it is asked.
	pushed func(cluster string) bool
}

// NewLocal makes the resolver "local". Of identities that are known, in the tables, it
// doesn't ask for the labels; nil is none.
func NewLocal(mesh *remote.Mesh, known func(identity uint32) bool) *Local {
	return &Local{mesh: mesh, known: known}
}

// Name implements IPCacheMissResolver.
func (*Local) Name() string { return "local" }

// Resolve implements IPCacheMissResolver, in one round trip or two.
func (l *Local) Resolve(ctx context.Context, questions []Question) []Resolved {
	q := questions[0] // all are about one cluster
	conn, ok := l.mesh.Connection(q.Cluster)
	switch {
	case !ok:
		return allFail(questions, fmt.Errorf("%w: %q is not connected", ErrUnavailable, q.Cluster))
	case conn.Config.ID != q.ClusterID:
		return allFail(questions, fmt.Errorf("%w: %q has the ID %d, not %d", ErrUnavailable, q.Cluster, conn.Config.ID, q.ClusterID))
	}
	if l.pushed != nil && conn.Config.Capabilities.Cached && l.pushed(q.Cluster) {
		return allFail(questions, ErrNotFound)
	}
	return answerBy(ctx, questions, l.known, func(ctx context.Context, lookups []wire.Lookup) []looked {
		return readSource(ctx, conn, lookups)
	})
}

// readSource reads all look-ups in the cluster's etcd.
func readSource(ctx context.Context, conn remote.Connection, lookups []wire.Lookup) []looked {
	results := make([]looked, len(lookups))
	for i, found := range conn.Lookup(ctx, lookups) {
		switch {
		case errors.Is(found.Err, wire.ErrIncomplete):
			results[i].err = fmt.Errorf("%w: %w", ErrUnavailable, found.Err)
		case found.Err != nil:
			results[i].err = asResolver(found.Err)
		default:
			results[i].value = found.Value()
		}
	}
	return results
}

// allFail has no question answered.
func allFail(questions []Question, err error) []Resolved {
	results := make([]Resolved, len(questions))
	for i := range results {
		results[i].Err = err
	}
	return results
}
