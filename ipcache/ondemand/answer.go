// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// connections is where clusters are found; remote.Mesh is.
type connections interface {
	Connection(cluster string) (remote.Connection, bool)
}

// reader reads what there is of each look-up, in their order; nil where there is
// nothing.
type reader func(ctx context.Context, lookups ...wire.Lookup) ([][]byte, error)

// answerBy answers a question by a reader, which is asked once, and a second time if the
// endpoint has an identity that the question doesn't name. What there is only in part is
// an answer as well: whoever asks knows whether that is enough.
func answerBy(ctx context.Context, q Question, known func(identity uint32) bool, read reader) (answer Answer, err error) {
	var lookups []wire.Lookup
	if q.Addr.IsValid() {
		lookups = append(lookups, wire.EndpointLookup(q.Cluster, q.Addr))
	}
	if q.Identity >= wire.MinIdentity {
		lookups = append(lookups, wire.IdentityLookup(q.Cluster, q.Identity))
	}
	if err = answer.take(ctx, read, lookups); err != nil {
		return Answer{}, err
	}
	if e := answer.Endpoint; e != nil && e.Identity >= wire.MinIdentity && e.Identity != q.Identity && (known == nil || !known(e.Identity)) {
		if err = answer.take(ctx, read, []wire.Lookup{wire.IdentityLookup(q.Cluster, e.Identity)}); err != nil {
			return Answer{}, err
		}
	}
	if answer.Endpoint == nil && len(answer.Identities) == 0 {
		return Answer{}, fmt.Errorf("%w: %s in cluster %q", ErrNotFound, q.Addr, q.Cluster)
	}
	return answer, nil
}

// take adds what there is of the look-ups.
func (a *Answer) take(ctx context.Context, read reader, lookups []wire.Lookup) error {
	values, err := read(ctx, lookups...)
	if err != nil {
		return err
	}
	for i, lookup := range lookups {
		if values[i] == nil {
			continue
		}
		if err := a.add(lookup, values[i]); err != nil {
			return fmt.Errorf("%w: cluster %q: %w", ErrRefused, lookup.Cluster, err)
		}
	}
	return nil
}

func (a *Answer) add(lookup wire.Lookup, value []byte) error {
	if err := wire.CheckLookupSize(lookup, value); err != nil {
		return err
	}
	if lookup.Resource == wire.Identities {
		identity, err := wire.DecodeIdentity(lookup.Key, value)
		if err == nil {
			a.Identities = append(a.Identities, identity)
		}
		return err
	}
	endpoint, err := wire.DecodeEndpoint(lookup.Key, value, nil)
	if err == nil {
		a.Endpoint = &endpoint
	}
	return err
}

// asResolver makes of an etcd's error one of a resolver's: whether it couldn't answer,
// or wouldn't.
func asResolver(err error) error {
	if errors.Is(err, etcd.ErrBadAnswer) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	switch etcd.CodeOf(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.PermissionDenied:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case codes.DeadlineExceeded: // gRPC's errors aren't those of a context
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, context.DeadlineExceeded, err)
	case codes.Canceled:
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, context.Canceled, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
