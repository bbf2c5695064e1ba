// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
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
func (r *ReadThrough) Resolve(ctx context.Context, questions []Question) []Resolved {
	return answerBy(ctx, questions, r.known, r.read)
}

// read asks for all look-ups, of one cluster, in a request that other questions about it
// may share.
func (r *ReadThrough) read(ctx context.Context, lookups []wire.Lookup) []looked {
	asks := make([][]string, len(lookups))
	for i, lookup := range lookups {
		asks[i] = []string{lookup.ReadThroughKey()}
	}
	var found []etcd.Got[etcd.Found]
	for range r.attempts {
		found = r.lookups(lookups[0].Cluster).Get(ctx, asks...)
		if !slices.ContainsFunc(found, func(one etcd.Got[etcd.Found]) bool { return etcd.CodeOf(one.Err) == codes.Unavailable }) {
			break
		}
	}
	results := make([]looked, len(found))
	for i, one := range found {
		if one.Err != nil {
			results[i].err = asResolver(one.Err)
		} else {
			results[i].value = one.Values[0].Value()
		}
	}
	return results
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
