// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
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
// share.
func readSource(ctx context.Context, conn remote.Connection, lookups []wire.Lookup) ([][]byte, error) {
	cached := conn.Config.Capabilities.Cached
	var keys []string
	ends := make([]int, len(lookups)) // of each look-up's keys
	for i, lookup := range lookups {
		keys = append(keys, lookup.SourceKeys(cached)...)
		ends[i] = len(keys)
	}
	found, err := conn.Client.Lookup(ctx, keys...)
	if err != nil {
		return nil, asResolver(err)
	}
	values := make([][]byte, len(lookups))
	from := 0
	for i, end := range ends {
		for _, one := range found[from:end] {
			if one.KV != nil {
				values[i] = valueOf(one)
				break
			}
		}
		from = end
	}
	return values, nil
}
