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
	// breakerFailures in a row have a cluster left alone for breakerPause; then it is
	// tried once, and the others go on if that is answered.
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

// resolve finds out what is known of one cluster, and who knew. The error of an answer is
// nil if it is all that was asked for; ErrNotFound if everybody says that there is no
// more, else what kept one from saying. Each answer is checked by itself, so that one
// which is refused keeps nobody else from giving a better one.
func (c *chain) resolve(ctx context.Context, lookups []*lookup) []*answered {
	all := make([]*answered, len(lookups))
	var open []*answered
	for i, l := range lookups {
		a := &answered{lookup: l}
		all[i] = a
		if !l.again && c.tables.answer(a) && c.complete(a.question, a.answer) {
			continue
		}
		a.err = ErrNotFound
		open = append(open, a)
	}
	for _, r := range c.others {
		if len(open) == 0 {
			break
		}
		open = c.ask(ctx, r, open)
	}
	for _, a := range open {
		q, got := a.question, a.answer
		if got.Endpoint != nil && outcome(a.err) == OutcomeNegative && !c.hasLabels(got, got.Endpoint.Identity) {
			a.err = fmt.Errorf("%w: %s of cluster %q has identity %d, whose labels nobody has", ErrUnknownIdentity, q.Addr, q.Cluster, got.Endpoint.Identity)
		}
		if ctx.Err() != nil && outcome(a.err) == OutcomeUnavailable {
			// Whatever form a resolver gave it.
			a.err = fmt.Errorf("%w: %w", context.Cause(ctx), a.err)
		}
	}
	return all
}

// ask asks one resolver for what isn't complete, and gives what isn't then.
func (c *chain) ask(ctx context.Context, r *guarded, open []*answered) (left []*answered) {
	questions := make([]Question, len(open))
	for i, a := range open {
		questions[i] = a.question
		if got := a.answer; got.Endpoint != nil && a.question.Identity == 0 && !c.hasLabels(got, got.Endpoint.Identity) {
			questions[i].Identity = got.Endpoint.Identity // which this one may know, if not the endpoint
		}
	}
	for i, resolved := range r.Resolve(ctx, questions) {
		a, failure := open[i], resolved.Err
		if failure == nil {
			resolved.Answer, failure = check(c.maxConnectedClusters, questions[i], resolved.Answer)
		}
		if failure != nil {
			if outcome(failure) == OutcomeRefused {
				c.refused(a.question, r.Name(), failure)
			}
			said := r.nothing
			if failure != ErrNotFound { //nolint:errorlint // what wraps it says more
				said = fmt.Errorf("%s: %w", r.Name(), failure)
			}
			a.err = worse(a.err, said)
			left = append(left, a)
			continue
		}
		if a.answer.merge(resolved.Answer) {
			a.from = r.Name()
		}
		if c.complete(a.question, a.answer) {
			a.err = nil
		} else {
			left = append(left, a)
		}
	}
	return left
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

// answer gives the endpoint that the tables have. An entry that was resolved on demand
// isn't believed where a packet names another identity: nobody tells when it changes.
func (t *tablesResolver) answer(a *answered) (found bool) {
	q := a.question
	row, _, found := t.endpoints.Get(t.db.ReadTxn(), state.EndpointByPrefix(state.PrefixOf(q.Addr)))
	if !found || row.Origin().Source == state.SourceOnDemand && q.Identity != 0 && q.Identity != row.Identity() {
		return false
	}
	ep := row.Endpoint()
	a.answer, a.from = Answer{Endpoint: &ep}, string(OutcomeTable)
	return true
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
	// nothing is what it has to say where it says no more than ErrNotFound: a copy without
	// what isn't pushed does so for each miss.
	nothing error

	mu       sync.Mutex
	breakers map[string]*breaker
}

type breaker = gobreaker.CircuitBreaker[[]Resolved]

func newGuarded(r IPCacheMissResolver, pause time.Duration, changed func()) *guarded {
	return &guarded{IPCacheMissResolver: r, pause: pause, changed: changed,
		nothing: fmt.Errorf("%s: %w", r.Name(), ErrNotFound), breakers: map[string]*breaker{}}
}

// Resolve implements IPCacheMissResolver. It has failed if it had an answer to none of
// the questions.
func (g *guarded) Resolve(ctx context.Context, questions []Question) []Resolved {
	results, err := g.breaker(questions[0].Cluster).Execute(func() (results []Resolved, err error) {
		results = g.IPCacheMissResolver.Resolve(ctx, questions)
		if len(results) != len(questions) {
			err = fmt.Errorf("%w: the resolver has %d answers to %d questions", ErrUnavailable, len(results), len(questions))
			return allFail(questions, err), err
		}
		for _, r := range results {
			if isAnswer(r.Err) {
				return results, nil
			}
			err = r.Err
		}
		return results, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return allFail(questions, fmt.Errorf("%w: it has failed %d times in a row, and is left alone for %v", ErrUnavailable, breakerFailures, g.pause))
	}
	return results
}

// isAnswer says whether a resolver can be asked: also who isn't complete answers, and
// has what comes meanwhile.
func isAnswer(err error) bool {
	o := outcome(err)
	return err == nil || o == OutcomeNegative || o == OutcomeRefused || errors.Is(err, wire.ErrIncomplete)
}

func (g *guarded) breaker(cluster string) *breaker {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.breakers[cluster]
	if !ok {
		b = gobreaker.NewCircuitBreaker[[]Resolved](gobreaker.Settings{
			Name:         cluster,
			Timeout:      g.pause,
			ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerFailures },
			IsSuccessful: isAnswer,
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
