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
		cache: newCache(config.CacheTTL, clock.RealClock{}), flights: flights{byKey: make(map[string]*flight)},
		stopped: ctx, links: make(map[string]*link),
	}
}

// ask looks things up, at the same time: what is at hand, what others ask for already,
// and what is left in one question to each cluster.
func (s *source) ask(lookups ...wire.Lookup) []result {
	results := make([]result, len(lookups))
	keys := make([]string, len(lookups))
	links := make(map[string]*link, 1)
	for i, lookup := range lookups {
		l, ok := links[lookup.Cluster]
		if !ok {
			var err error
			if l, err = s.link(lookup.Cluster); err != nil {
				results[i].err = err
				continue
			}
			links[lookup.Cluster] = l
		}
		if err := l.validator.CheckKey(lookup.Resource, lookup.Key); err != nil {
			results[i].err = fail(outcomeMalformed, codes.InvalidArgument, "%v", err)
			continue
		}
		keys[i] = l.key(lookup)
	}
	joined, begun := s.flights.join(keys, func(i int) (atHand bool) {
		results[i].answer, atHand = s.cache.get(keys[i])
		if atHand {
			s.metrics.cached.Inc()
		}
		return atHand
	})
	// Whoever asks stays until the flights end, within their deadline: gRPC bounds how
	// many do, whether their clients still wait or not.
	var flying sync.WaitGroup
	for cluster, l := range links {
		var mine []int
		for _, i := range begun {
			if lookups[i].Cluster == cluster {
				mine = append(mine, i)
			}
		}
		if len(mine) == 0 {
			continue
		}
		fly := func() {
			of := make([]wire.Lookup, len(mine))
			for n, i := range mine {
				of[n] = lookups[i]
			}
			for n, got := range s.fetch(l, of) {
				if got.err == nil {
					s.cache.put(keys[mine[n]], got.answer)
				}
				s.flights.land(keys[mine[n]], got)
			}
		}
		if len(links) == 1 {
			fly()
		} else {
			flying.Go(fly) // who is away holds up nobody else's
		}
	}
	flying.Wait()
	for i, flight := range joined {
		<-flight.done
		results[i] = flight.result
	}
	return results
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
	asks := wire.Asks(lookups, false)
	// The error is for the breaker: that of all, if no look-up was answered.
	found, err := link.breaker.Execute(func() (found []etcd.Got[etcd.Found], err error) {
		s.metrics.asked.Inc()
		found = link.conn.Client.Lookup(ctx, asks...)
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
			results[i].answer, results[i].err = link.pick(lookups[i], one.Values)
		}
	}
	return results
}

func explain(cluster string, err error) error {
	switch code := etcd.CodeOf(err); {
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q didn't answer, and isn't asked for a moment", cluster)
	case errors.Is(err, etcd.ErrBadAnswer):
		return fail(outcomeRefused, codes.FailedPrecondition, "refusing what remote cluster %q answers: %.512v", cluster, err)
	case code == codes.PermissionDenied:
		return fail(outcomeRefused, codes.FailedPrecondition, "remote cluster %q doesn't let its readers look up what isn't pushed: %v", cluster, err)
	default:
		return fail(outcomeUnavailable, codes.Unavailable, "remote cluster %q can't be asked: %.512v", cluster, err)
	}
}

// pick passes on the first key that there is, if KVStoreMesh would copy it. That there
// is none counts where the remote cluster says that all it has is there, as what is
// pushed isn't taken away before it does.
func (l *link) pick(lookup wire.Lookup, found []etcd.Found) (answer, error) {
	sources := len(found) - wire.EvidenceCount
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
	evidence := make([][]byte, 0, wire.EvidenceCount)
	for _, one := range found[sources:] {
		evidence = append(evidence, one.Value())
	}
	if err := lookup.CheckAbsence(l.conn.Config, l.conn.RawConfig, evidence); err != nil {
		// Of what is found more is known: it is this look-up that isn't answered, and no
		// other of the request.
		return answer{}, fail(outcomeUnavailable, codes.Aborted, "nothing is found, and %.512v", err)
	}
	return answer{header: found[0].Header}, nil
}
