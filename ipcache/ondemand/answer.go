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

// looked is what there is of a look-up: no value where there is nothing.
type looked struct {
	value []byte
	err   error
}

// reader reads what there is of each look-up, in their order.
type reader func(ctx context.Context, lookups []wire.Lookup) []looked

// answerBy answers questions by a reader, which is asked once, and a second time if
// endpoints have identities that the questions don't name. What there is only in part is
// an answer as well: whoever asks knows whether that is enough.
func answerBy(ctx context.Context, questions []Question, known func(identity uint32) bool, read reader) []Resolved {
	results := make([]Resolved, len(questions))
	first, second := newInquiry(len(questions)), inquiry{}
	for i, q := range questions {
		if q.Addr.IsValid() {
			first.add(i, wire.EndpointLookup(q.Cluster, q.Addr))
		}
		if q.Identity >= wire.MinIdentity {
			first.add(i, wire.IdentityLookup(q.Cluster, q.Identity))
		}
	}
	first.make(ctx, read, results)
	for i, q := range questions {
		e := results[i].Answer.Endpoint
		if results[i].Err == nil && e != nil && e.Identity >= wire.MinIdentity && e.Identity != q.Identity && (known == nil || !known(e.Identity)) {
			second.add(i, wire.IdentityLookup(q.Cluster, e.Identity))
		}
	}
	second.make(ctx, read, results)
	for i, q := range questions {
		switch r := &results[i]; {
		case r.Err != nil:
			r.Answer = Answer{}
		case r.Answer.Endpoint == nil && len(r.Answer.Identities) == 0:
			r.Err = fmt.Errorf("%w: %s in cluster %q", ErrNotFound, q.Addr, q.Cluster)
		}
	}
	return results
}

// inquiry is what is looked up for several questions at once.
type inquiry struct {
	lookups []wire.Lookup
	of      []int // the question of each
}

// newInquiry has room for as many.
func newInquiry(room int) inquiry {
	return inquiry{lookups: make([]wire.Lookup, 0, room), of: make([]int, 0, room)}
}

func (in *inquiry) add(question int, lookup wire.Lookup) {
	in.lookups, in.of = append(in.lookups, lookup), append(in.of, question)
}

// make adds what there is to the questions' results.
func (in *inquiry) make(ctx context.Context, read reader, results []Resolved) {
	if len(in.lookups) == 0 {
		return
	}
	for i, got := range read(ctx, in.lookups) {
		r, lookup := &results[in.of[i]], in.lookups[i]
		switch {
		case r.Err != nil:
		case got.err != nil:
			r.Err = got.err
		case got.value == nil:
		default:
			if err := r.Answer.add(lookup, got.value); err != nil {
				r.Err = fmt.Errorf("%w: cluster %q: %w", ErrRefused, lookup.Cluster, err)
			}
		}
	}
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
	case codes.Aborted: // the read-through's word for it
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, wire.ErrIncomplete, err)
	case codes.DeadlineExceeded: // gRPC's errors aren't those of a context
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, context.DeadlineExceeded, err)
	case codes.Canceled:
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, context.Canceled, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
