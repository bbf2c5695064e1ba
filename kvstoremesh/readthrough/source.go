// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package readthrough

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/sony/gobreaker/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
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
	flights flights
	// stopped ends with the process: flights serve several clients, and don't end with
	// one of them.
	stopped context.Context

	mu     sync.Mutex
	links  map[string]*link
	serial uint64
}

// result is what became of one look-up; err is a *failure.
type result struct {
	answer
	err error
}

func newSource(ctx context.Context, mesh connections, local wire.ClusterInfo, region string, config Config, metrics *Metrics) *source {
	return &source{
		mesh: mesh, local: local, region: region, limits: defaultLimits, metrics: metrics,
		cache: newCache(config.CacheTTL, clock.RealClock{}), flights: flights{byKey: make(map[lookupKey]*flight)},
		stopped: ctx, links: make(map[string]*link),
	}
}

// ask looks things up, at the same time: what is at hand, what others ask for already,
// and what is left in one question to each cluster.
func (s *source) ask(lookups ...wire.Lookup) []result {
	results := make([]result, len(lookups))
	links := make(map[string]*group, 1)
	for i, lookup := range lookups {
		of, ok := links[lookup.Cluster]
		if !ok {
			l, err := s.link(lookup.Cluster)
			if err != nil {
				results[i].err = err
				continue
			}
			of = &group{link: l}
			links[lookup.Cluster] = of
		}
		if err := of.link.validator.CheckKey(lookup.Resource, lookup.Key); err != nil {
			results[i].err = fail(outcomeMalformed, codes.InvalidArgument, "%v", err)
			continue
		}
		of.lookups, of.places = append(of.lookups, lookup), append(of.places, i)
	}
	// Whoever asks stays until the flights end, within their deadline: gRPC bounds how
	// many do, whether their clients still wait or not. Who is away holds up nobody else's.
	var asking sync.WaitGroup
	for _, of := range links {
		if len(links) == 1 {
			s.askOne(of, results)
		} else {
			asking.Go(func() { s.askOne(of, results) })
		}
	}
	asking.Wait()
	return results
}

// group is what is asked about one cluster, and the places of it among all that is asked.
type group struct {
	link    *link
	lookups []wire.Lookup
	places  []int
}

// askOne has the results of a group at their places.
func (s *source) askOne(of *group, results []result) {
	keys := make([]lookupKey, len(of.lookups))
	for n, lookup := range of.lookups {
		keys[n] = lookupKey{of.link.serial, lookup.Resource, lookup.Key}
	}
	joined, begun, land := s.flights.join(keys, func(n int) (atHand bool) {
		results[of.places[n]].answer, atHand = s.cache.get(keys[n])
		if atHand {
			s.metrics.cached.Inc()
		}
		return atHand
	})
	if len(begun) > 0 {
		mine := make([]wire.Lookup, len(begun))
		for i, n := range begun {
			mine[i] = of.lookups[n]
		}
		fetched := s.fetch(of.link, mine)
		for i, n := range begun {
			if fetched[i].err == nil {
				s.cache.put(keys[n], fetched[i].answer)
			}
		}
		land(fetched)
	}
	for n, flight := range joined {
		if flight != nil {
			<-flight.landed
			results[of.places[n]] = flight.result
		}
	}
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
func (s *source) fetch(link *link, lookups []wire.Lookup) []result {
	results := make([]result, len(lookups))
	failed := func(err error) []result {
		for i := range results {
			results[i].err = err
		}
		return results
	}
	ctx, cancel := context.WithTimeout(s.stopped, s.limits.timeout)
	defer cancel()
	slots := min(int64(len(lookups)), s.limits.slots)
	if err := link.slots.Acquire(ctx, slots); err != nil {
		return failed(fail(outcomeUnavailable, codes.Unavailable,
			"remote cluster %q is asked too much: no look-up came to an end in time", link.conn.Cluster))
	}
	defer link.slots.Release(slots)
	// The error is for the breaker: that of all, if no look-up was answered.
	found, err := link.breaker.Execute(func() (found []remote.LookedUp, err error) {
		s.metrics.asked.Inc()
		found = link.conn.Lookup(ctx, lookups)
		for _, one := range found {
			if one.Err == nil || !away(etcd.CodeOf(one.Err)) {
				return found, nil
			}
			err = one.Err
		}
		return found, err
	})
	if found == nil {
		return failed(explain(link.conn.Cluster, err))
	}
	for i, one := range found {
		if one.Err != nil {
			results[i].err = explain(link.conn.Cluster, one.Err)
		} else {
			results[i].answer, results[i].err = link.pick(lookups[i], one.Found)
		}
	}
	return results
}

func explain(cluster string, err error) error {
	switch code := etcd.CodeOf(err); {
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q didn't answer, and isn't asked for a moment", cluster)
	case errors.Is(err, wire.ErrIncomplete):
		// Of what is found more is known: it is this look-up that isn't answered, and no
		// other of the request.
		return fail(outcomeUnavailable, codes.Aborted, "nothing is found, and %.512v", err)
	case errors.Is(err, etcd.ErrBadAnswer):
		return fail(outcomeRefused, codes.FailedPrecondition, "refusing what remote cluster %q answers: %.512v", cluster, err)
	case code == codes.PermissionDenied:
		return fail(outcomeRefused, codes.FailedPrecondition, "remote cluster %q doesn't let its readers look up what isn't pushed: %v", cluster, err)
	default:
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q can't be asked: %.512v", cluster, err)
	}
}

// pick passes on what there is if KVStoreMesh would copy it. It is what the cache keeps, and
// so nothing of the message that it came by, which a remote cluster can make large.
func (l *link) pick(lookup wire.Lookup, found etcd.Found) (answer, error) {
	if found.KV == nil {
		return answer{header: found.Header}, nil
	}
	if err := wire.CheckLookupSize(lookup, found.KV.Value); err != nil {
		return answer{}, fail(outcomeRefused, codes.FailedPrecondition, "remote cluster %q: %v", lookup.Cluster, err)
	}
	if l.regional && lookup.Resource == wire.Endpoints && wire.EndpointScope(found.KV.Value) == wire.ScopeRegional {
		return answer{header: found.Header}, nil // for whoever asks from here it isn't there
	}
	kv := *found.KV
	return answer{found.Header, &mvccpb.KeyValue{
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Value: bytes.Clone(kv.Value),
	}}, nil
}
