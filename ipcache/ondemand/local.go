// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"slices"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// Local looks a question up in the etcd that the agent follows the cluster by: that of
// its KVStoreMesh, which has what is pushed, or the cluster's own, which also has what
// is to be looked up.
type Local struct {
	mesh  connections
	known func(identity uint32) bool
}

// NewLocal makes the resolver "local". Of identities that are known, in the tables, it
// doesn't ask for the labels; nil is none.
func NewLocal(mesh *remote.Mesh, known func(identity uint32) bool) *Local { return &Local{mesh, known} }

// Name implements IPCacheMissResolver.
func (*Local) Name() string { return "local" }

// Resolve implements IPCacheMissResolver, in one round trip or two.
func (l *Local) Resolve(ctx context.Context, q Question) (Answer, error) {
	conn, ok := l.mesh.Connection(q.Cluster)
	switch {
	case !ok:
		return Answer{}, fmt.Errorf("%w: %q is not connected", ErrUnavailable, q.Cluster)
	case conn.Config.ID != q.ClusterID:
		return Answer{}, fmt.Errorf("%w: %q has the ID %d, not %d", ErrUnavailable, q.Cluster, conn.Config.ID, q.ClusterID)
	}
	return answerBy(ctx, q, l.known, func(ctx context.Context, lookups ...wire.Lookup) ([][]byte, error) {
		return readSource(ctx, conn, lookups)
	})
}

// readSource reads all look-ups at one revision, in a round trip that other questions may
// share. That there is nothing counts where the etcd is known to be complete: one that was
// emptied would take entries away that are in use.
func readSource(ctx context.Context, conn remote.Connection, lookups []wire.Lookup) ([][]byte, error) {
	cached := conn.Config.Capabilities.Cached
	var keys []string
	for _, lookup := range lookups {
		keys = append(append(keys, lookup.SourceKeys(cached)...), lookup.EvidenceKeys(cached)...)
	}
	found, err := conn.Client.Lookup(ctx, keys...)
	if err != nil {
		return nil, asResolver(err)
	}
	values := make([][]byte, len(lookups))
	for i, lookup := range lookups {
		var sources, evidence [][]byte
		sources, found = takeValues(found, len(lookup.SourceKeys(cached)))
		evidence, found = takeValues(found, len(lookup.EvidenceKeys(cached)))
		if at := slices.IndexFunc(sources, func(value []byte) bool { return value != nil }); at >= 0 {
			values[i] = sources[at]
		} else if err := lookup.CheckAbsence(conn.Config, conn.RawConfig, evidence); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return values, nil
}

// takeValues splits off the first n values; nil where there is nothing.
func takeValues(found []etcd.Found, n int) (values [][]byte, rest []etcd.Found) {
	for _, one := range found[:n] {
		values = append(values, one.Value())
	}
	return values, found[n:]
}
