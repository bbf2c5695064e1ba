// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cilium/statedb"
	"github.com/sony/gobreaker/v2"

	"github.com/waggle-mesh/waggle/cells/state"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// breakerFailures in a row have a cluster left alone for breakerPause; then one
	// lookup tries, and the others go on if it is answered.
	breakerFailures = 5
	breakerPause    = 5 * time.Second
)

// chain asks one resolver after the other, until one of them knows.
type chain struct {
	tables               tablesResolver
	others               []*guarded
	maxConnectedClusters uint32
	// refused is told of each answer, or question, that was refused.
	refused func(q Question, resolver string, err error)
}

// resolve gives what is known, who knew, and an error unless that is all that was asked
// for: ErrNotFound if everybody says that there is no more, else what kept one from
// saying. Each answer is checked by itself, so that one which is refused keeps nobody
// else from giving a better one.
func (c *chain) resolve(ctx context.Context, q Question, again bool) (got Answer, from string, err error) {
	if !again {
		got, err = c.tables.Resolve(ctx, q)
		if err == nil {
			from = c.tables.Name()
		}
		if c.complete(q, got) {
			return got, from, nil
		}
	}
	err = ErrNotFound
	for _, r := range c.others {
		ask := q
		if got.Endpoint != nil && q.Identity == 0 && !c.hasLabels(got, got.Endpoint.Identity) {
			ask.Identity = got.Endpoint.Identity // which this one may know, if not the endpoint
		}
		answer, failure := r.Resolve(ctx, ask)
		if failure == nil {
			answer, failure = check(c.maxConnectedClusters, ask, answer)
		}
		if failure != nil {
			if outcome(failure) == OutcomeRefused {
				c.refused(q, r.Name(), failure)
			}
			err = worse(err, fmt.Errorf("%s: %w", r.Name(), failure))
			continue
		}
		if got.merge(answer) {
			from = r.Name()
		}
		if c.complete(q, got) {
			return got, from, nil
		}
	}
	if got.Endpoint != nil && outcome(err) == OutcomeNegative && !c.hasLabels(got, got.Endpoint.Identity) {
		err = fmt.Errorf("%w: %s of cluster %q has identity %d, whose labels nobody has", ErrUnknownIdentity, q.Addr, q.Cluster, got.Endpoint.Identity)
	}
	if ctx.Err() != nil && outcome(err) == OutcomeUnavailable {
		// Whatever form a resolver gave it.
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return got, from, err
}

// merge adds what is new of another answer, and says whether there is any.
func (a *Answer) merge(other Answer) (added bool) {
	if a.Endpoint == nil && other.Endpoint != nil {
		a.Endpoint, added = other.Endpoint, true
	}
	for _, id := range other.Identities {
		if !a.hasIdentity(id.ID) {
			a.Identities, added = append(a.Identities, id), true
		}
	}
	return added
}

func (a *Answer) hasIdentity(id uint32) bool {
	return slices.ContainsFunc(a.Identities, func(i wire.Identity) bool { return i.ID == id })
}

// complete says whether the answer has the endpoint, and all identities are known.
func (c *chain) complete(q Question, a Answer) bool {
	return a.Endpoint != nil && c.hasLabels(a, a.Endpoint.Identity) && c.hasLabels(a, q.Identity)
}

// hasLabels says whether an identity is known, by the answer or by the tables.
func (c *chain) hasLabels(a Answer, id uint32) bool {
	return id < wire.MinIdentity || a.hasIdentity(id) || c.tables.hasIdentity(id)
}

// worse is the error that says more about why nothing is known: that somebody couldn't
// be asked before that something was refused, and that before that there is nothing.
func worse(a, b error) error {
	rank := func(err error) int {
		return slices.Index([]Outcome{OutcomeNegative, OutcomeRefused, OutcomeTimeout, OutcomeUnavailable}, outcome(err))
	}
	if rank(b) >= rank(a) {
		return b
	}
	return a
}

// tablesResolver finds what is there already: the kernel's signal may be ahead of the
// map, or have been given before the entry was written.
type tablesResolver struct {
	db         *statedb.DB
	endpoints  statedb.Table[*state.Endpoint]
	identities statedb.Table[*state.Identity]
}

// Name implements IPCacheMissResolver.
func (tablesResolver) Name() string { return string(OutcomeTable) }

// Resolve implements IPCacheMissResolver. An entry that was resolved on demand isn't
// believed where a packet names another identity: nobody tells when it changes.
func (t *tablesResolver) Resolve(_ context.Context, q Question) (Answer, error) {
	row, _, found := t.endpoints.Get(t.db.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(q.Addr)))
	if !found || row.Origin().Source == state.SourceOnDemand && q.Identity != 0 && q.Identity != row.Identity() {
		return Answer{}, ErrNotFound
	}
	ep := row.Endpoint()
	return Answer{Endpoint: &ep}, nil
}

func (t *tablesResolver) hasIdentity(id uint32) bool {
	_, _, found := t.identities.Get(t.db.ReadTxn(), state.IdentityByID(id))
	return found
}

// guarded is a resolver that is left alone about a cluster for a while after it has
// failed several times in a row: each lookup would wait for its deadline, and whoever is
// away isn't helped by being asked.
type guarded struct {
	IPCacheMissResolver
	pause   time.Duration
	changed func()

	mu       sync.Mutex
	breakers map[string]*gobreaker.CircuitBreaker[Answer]
}

func newGuarded(r IPCacheMissResolver, pause time.Duration, changed func()) *guarded {
	return &guarded{IPCacheMissResolver: r, pause: pause, changed: changed,
		breakers: map[string]*gobreaker.CircuitBreaker[Answer]{}}
}

// Resolve implements IPCacheMissResolver.
func (g *guarded) Resolve(ctx context.Context, q Question) (Answer, error) {
	answer, err := g.breaker(q.Cluster).Execute(func() (Answer, error) {
		return g.IPCacheMissResolver.Resolve(ctx, q)
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Answer{}, fmt.Errorf("%w: it has failed %d times in a row, and is left alone for %v", ErrUnavailable, breakerFailures, g.pause)
	}
	return answer, err
}

func (g *guarded) breaker(cluster string) *gobreaker.CircuitBreaker[Answer] {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.breakers[cluster]
	if !ok {
		b = gobreaker.NewCircuitBreaker[Answer](gobreaker.Settings{
			Name:        cluster,
			Timeout:     g.pause,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerFailures },
			IsSuccessful: func(err error) bool {
				o := outcome(err)
				// Whoever isn't complete answers, and has what comes meanwhile.
				return err == nil || o == OutcomeNegative || o == OutcomeRefused || errors.Is(err, wire.ErrIncomplete)
			},
			// It is us who gave up.
			IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
			OnStateChange: func(string, gobreaker.State, gobreaker.State) { g.changed() },
		})
		g.breakers[cluster] = b
	}
	return b
}

// keep forgets the clusters that aren't named.
func (g *guarded) keep(clusters map[string]struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cluster := range g.breakers {
		if _, ok := clusters[cluster]; !ok {
			delete(g.breakers, cluster)
			g.changed()
		}
	}
}

// away are the clusters that aren't asked now, sorted. One whose pause is over isn't:
// the next lookup asks it.
func (g *guarded) away() (clusters []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cluster, b := range g.breakers {
		if b.State() == gobreaker.StateOpen {
			clusters = append(clusters, cluster)
		}
	}
	slices.Sort(clusters)
	return clusters
}
