// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
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
}

// NewReadThrough makes the resolver "read-through" from an etcd client's configuration
// file, in which the read-throughs of KVStoreMesh's replicas are the endpoints. It
// doesn't connect; the error names the file.
func NewReadThrough(log *slog.Logger, path string) (*ReadThrough, error) {
	client, err := etcd.NewClient(log, etcd.ClientConfig{ConfigPath: path})
	if err != nil {
		return nil, fmt.Errorf("preparing the read-through: %w", err)
	}
	return &ReadThrough{client: client, attempts: min(len(client.Endpoints()), 2)}, nil
}

// Close ends the connection.
func (r *ReadThrough) Close() error { return r.client.Close() }

// Name implements IPCacheMissResolver.
func (*ReadThrough) Name() string { return "read-through" }

// Resolve implements IPCacheMissResolver, in the time of one round trip or two.
func (r *ReadThrough) Resolve(ctx context.Context, q Question) (Answer, error) {
	return answerBy(ctx, q, r.read)
}

// read asks for all look-ups at the same time: the read-through takes one key each.
func (r *ReadThrough) read(ctx context.Context, lookups ...wire.Lookup) ([][]byte, error) {
	values := make([][]byte, len(lookups))
	group, ctx := errgroup.WithContext(ctx)
	for i, lookup := range lookups {
		group.Go(func() (err error) {
			values[i], err = r.get(ctx, lookup.ReadThroughKey())
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, asResolver(err)
	}
	return values, nil
}

func (r *ReadThrough) get(ctx context.Context, key string) (value []byte, err error) {
	for range r.attempts {
		if value, err = r.client.Get(ctx, key); etcd.CodeOf(err) != codes.Unavailable {
			break
		}
	}
	return value, err
}
