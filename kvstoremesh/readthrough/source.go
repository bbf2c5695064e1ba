// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"context"
	"errors"
	"sync"

	"github.com/sony/gobreaker/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"k8s.io/utils/clock"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/remote"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// answer is what a remote cluster has: nothing if kv is nil. It isn't modified.
type answer struct {
	header *pb.ResponseHeader
	kv     *mvccpb.KeyValue
}

// connections is remote.Mesh, as far as it is needed.
type connections interface {
	Connection(cluster string) (remote.Connection, bool)
	Configured(cluster string) bool
}

// source asks remote clusters. Its method is safe for concurrent use.
type source struct {
	mesh    connections
	local   wire.ClusterInfo
	region  string
	limits  limits
	metrics *Metrics
	cache   *cache
	flights singleflight.Group
	// stopped ends with the process: flights serve several clients, and don't end with
	// one of them.
	stopped context.Context

	mu     sync.Mutex
	links  map[string]*link
	serial uint64
}

func newSource(ctx context.Context, mesh connections, local wire.ClusterInfo, region string, config Config, metrics *Metrics) *source {
	return &source{
		mesh: mesh, local: local, region: region, limits: defaultLimits, metrics: metrics,
		cache: newCache(config.CacheTTL, clock.RealClock{}), stopped: ctx, links: make(map[string]*link),
	}
}

// ask looks one thing up. Its error is a *failure.
func (s *source) ask(lookup wire.Lookup) (answer, error) {
	link, err := s.link(lookup.Cluster)
	if err != nil {
		return answer{}, err
	}
	if err := link.validator.CheckKey(lookup.Resource, lookup.Key); err != nil {
		return answer{}, fail(outcomeMalformed, codes.InvalidArgument, "%v", err)
	}
	key := link.key(lookup)
	if a, ok := s.cache.get(key); ok {
		s.metrics.cached.Inc()
		return a, nil
	}
	// Whoever asks stays until the flight ends, within its deadline: gRPC bounds how
	// many do, whether their clients still wait or not.
	got, err, _ := s.flights.Do(key, func() (any, error) {
		// The last flight may have landed since the cache was looked at.
		if a, ok := s.cache.get(key); ok {
			return a, nil
		}
		a, err := s.fetch(link, lookup)
		if err == nil {
			s.cache.put(key, a)
		}
		return a, err
	})
	if err != nil {
		return answer{}, err
	}
	return got.(answer), nil
}

// link gives what belongs to the cluster's connection as it is now.
func (s *source) link(cluster string) (*link, error) {
	conn, ok := s.mesh.Connection(cluster)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		delete(s.links, cluster)
		if !s.mesh.Configured(cluster) {
			return nil, fail(outcomeUnknown, codes.NotFound, "there is no remote cluster %.256q", cluster)
		}
		return nil, fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q is not connected", cluster)
	}
	if conn.Config.Capabilities.Cached {
		return nil, fail(outcomeCached, codes.FailedPrecondition,
			"remote cluster %q is read from a cache, which doesn't have what isn't pushed, and a copy isn't copied again", cluster)
	}
	if l := s.links[cluster]; l != nil && l.is(conn) {
		return l, nil
	}
	for name := range s.links {
		if !s.mesh.Configured(name) {
			delete(s.links, name)
		}
	}
	s.serial++
	l := newLink(conn, s.serial, s.local, s.region, s.limits)
	s.links[cluster] = l
	return l, nil
}

// fetch asks the remote cluster, in one round trip, which other look-ups may share.
func (s *source) fetch(link *link, lookup wire.Lookup) (answer, error) {
	ctx, cancel := context.WithTimeout(s.stopped, s.limits.timeout)
	defer cancel()
	if err := link.slots.Acquire(ctx, 1); err != nil {
		return answer{}, fail(outcomeUnavailable, codes.Unavailable,
			"remote cluster %q is asked too much: no look-up came to an end in time", lookup.Cluster)
	}
	defer link.slots.Release(1)
	found, err := link.breaker.Execute(func() ([]etcd.Found, error) {
		s.metrics.asked.Inc()
		return link.conn.Client.Lookup(ctx, append(lookup.SourceKeys(false), lookup.EvidenceKeys(false)...)...)
	})
	if err != nil {
		return answer{}, explain(lookup, err)
	}
	return link.pick(lookup, found)
}

func explain(lookup wire.Lookup, err error) error {
	switch code := etcd.CodeOf(err); {
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q didn't answer, and isn't asked for a moment", lookup.Cluster)
	case errors.Is(err, etcd.ErrBadAnswer):
		return fail(outcomeRefused, codes.FailedPrecondition, "refusing what remote cluster %q answers: %.512v", lookup.Cluster, err)
	case code == codes.PermissionDenied:
		return fail(outcomeRefused, codes.FailedPrecondition, "remote cluster %q doesn't let its readers look up what isn't pushed: %v", lookup.Cluster, err)
	default:
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q can't be asked: %.512v", lookup.Cluster, err)
	}
}

// pick passes on the first key that there is, if KVStoreMesh would copy it. That there
// is none counts where the remote cluster says that all it has is there, as what is
// pushed isn't taken away before it does.
func (l *link) pick(lookup wire.Lookup, found []etcd.Found) (answer, error) {
	sources := len(lookup.SourceKeys(false))
	for _, one := range found[:sources] {
		kv := one.KV
		if kv == nil {
			continue
		}
		if err := wire.CheckLookupSize(lookup, kv.Value); err != nil {
			return answer{}, fail(outcomeRefused, codes.FailedPrecondition, "remote cluster %q: %v", lookup.Cluster, err)
		}
		if l.regional && lookup.Resource == wire.Endpoints && wire.EndpointScope(kv.Value) == wire.ScopeRegional {
			return answer{header: one.Header}, nil // for whoever asks from here it isn't there
		}
		return answer{one.Header, kv}, nil
	}
	evidence := make([][]byte, 0, 2)
	for _, one := range found[sources:] {
		evidence = append(evidence, one.Value())
	}
	if err := lookup.CheckAbsence(l.conn.Config, l.conn.RawConfig, evidence); err != nil {
		return answer{}, fail(outcomeUnavailable, codes.Unavailable, "nothing is found, and %.512v", err)
	}
	return answer{header: found[0].Header}, nil
}
