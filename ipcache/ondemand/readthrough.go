// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// ReadThrough has the cluster's KVStoreMesh look a question up in the remote cluster
// itself, which has what isn't pushed as well.
type ReadThrough struct {
	client *etcd.Client
	// attempts at one look-up: where there are replicas one of them may be connected to
	// the remote cluster while another isn't. They share the question's deadline.
	attempts int
	known    func(identity uint32) bool

	mu sync.Mutex
	// byCluster: who asks about one cluster doesn't wait for another's answer. There are
	// as many as clusters were ever asked about.
	byCluster map[string]*etcd.Gather[etcd.Found]
}

// NewReadThrough makes the resolver "read-through" from an etcd client's configuration
// file, in which the read-throughs of KVStoreMesh's replicas are the endpoints. It
// doesn't connect; the error names the file. What is known it is told as NewLocal is.
func NewReadThrough(log *slog.Logger, path string, known func(identity uint32) bool) (*ReadThrough, error) {
	client, err := etcd.NewClient(log, etcd.ClientConfig{ConfigPath: path})
	if err != nil {
		return nil, fmt.Errorf("preparing the read-through: %w", err)
	}
	return &ReadThrough{client: client, attempts: min(len(client.Endpoints()), 2), known: known, byCluster: map[string]*etcd.Gather[etcd.Found]{}}, nil
}

// Close ends the connection.
func (r *ReadThrough) Close() error { return r.client.Close() }

// Name implements IPCacheMissResolver.
func (*ReadThrough) Name() string { return "read-through" }

// Resolve implements IPCacheMissResolver, in the time of one round trip or two.
func (r *ReadThrough) Resolve(ctx context.Context, q Question) (Answer, error) {
	return answerBy(ctx, q, r.known, r.read)
}

// read asks for all look-ups, of one cluster, in a request that other questions about it
// may share.
func (r *ReadThrough) read(ctx context.Context, lookups ...wire.Lookup) (values [][]byte, err error) {
	keys := make([]string, len(lookups))
	for i, lookup := range lookups {
		keys[i] = lookup.ReadThroughKey()
	}
	var found []etcd.Found
	for range r.attempts {
		found, err = r.lookups(lookups[0].Cluster).Get(ctx, keys...)
		if etcd.CodeOf(err) != codes.Unavailable {
			break
		}
	}
	if err != nil {
		return nil, asResolver(err)
	}
	values = make([][]byte, len(keys))
	for i, one := range found {
		values[i] = one.Value()
	}
	return values, nil
}

func (r *ReadThrough) lookups(cluster string) *etcd.Gather[etcd.Found] {
	r.mu.Lock()
	defer r.mu.Unlock()
	of, ok := r.byCluster[cluster]
	if !ok {
		of = r.client.NewLookups()
		r.byCluster[cluster] = of
	}
	return of
}
