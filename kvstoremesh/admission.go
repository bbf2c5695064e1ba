// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"errors"
	"fmt"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// keeper knows which keys were taken: a Scope.
type keeper interface {
	Held() int
	Holds(key string) bool
}

// budget is how many keys one cluster may have. Its resources share it. What is
// in the local etcd still and about to be deleted counts as well, until the pass
// that tells so is complete: a source can't have more by showing others each time.
type budget struct {
	max     int
	keepers []keeper
}

func (b *budget) used() (sum int) {
	for _, k := range b.keepers {
		sum += k.Held()
	}
	return sum
}

// admission decides which events of one resource of one cluster are taken. It
// does no I/O, and remembers only the keys that it refused or skipped.
//
// What is refused or skipped is as if the source didn't have it: a key whose new
// value is refused is deleted, so that the outcome is that of a fresh start. To be
// skipped is no fault, and it takes nothing of the budget.
type admission struct {
	resource  wire.Resource
	validator *wire.Validator
	budget    *budget
	keeper    keeper // of this resource's keys
	// pass numbers the lists: what was refused, and isn't in the list, is gone.
	pass    uint32
	refused map[string]refused
	crowded int // of them, those that were too many
	// regional: what is regional is skipped, since the source is in another region.
	// Whoever changes it has everything listed again.
	regional bool
	skipped  *skipped
}

type refused struct {
	reason wire.Reason
	pass   uint32
}

func newAdmission(resource wire.Resource, validator *wire.Validator, budget *budget, keeper keeper) *admission {
	return &admission{resource: resource, validator: validator, budget: budget, keeper: keeper,
		refused: make(map[string]refused), skipped: newSkipped()}
}

// beginPass is called when a list begins, and endPass when it is complete.
func (a *admission) beginPass() {
	a.pass++
	a.skipped.beginPass()
}

func (a *admission) endPass() {
	for key, r := range a.refused {
		if r.pass != a.pass {
			a.forget(key)
		}
	}
	a.skipped.endPass()
}

// clear forgets what was refused or skipped.
func (a *admission) clear() {
	a.skipped.clear()
	clear(a.refused)
	a.crowded = 0
}

// crowds says whether so many events might be too many, so that the keeper must
// be told of each one before the next is admitted.
func (a *admission) crowds(events int) bool { return a.budget.used()+events > a.budget.max }

// admit gives what an event asks of the local etcd. The error is a *wire.Refusal;
// what a list brings that was refused before for the same reason is none.
// With crowded the budget is looked at.
func (a *admission) admit(ev etcd.Event, listing, crowded bool) (etcd.Op, error) {
	before, refusedBefore := a.forget(ev.Key)
	if ev.Deleted {
		a.skipped.set(ev.Key, false)
		return etcd.Op{Key: ev.Key, Delete: true}, nil
	}
	err := a.check(ev)
	skip := err == nil && a.skips(ev.Value)
	a.skipped.set(ev.Key, skip)
	if err == nil && crowded && !skip {
		err = a.fits(ev.Key)
	}
	switch {
	case skip:
		return etcd.Op{Key: ev.Key, Delete: true}, nil
	case err == nil:
		return etcd.Op{Key: ev.Key, Value: ev.Value}, nil
	}
	refusal := asRefusal(a.resource, ev.Key, err)
	a.refused[ev.Key] = refused{refusal.Reason, a.pass}
	if refusal.Reason == wire.ReasonTooMany {
		a.crowded++
	}
	op := etcd.Op{Key: ev.Key, Delete: true}
	if listing && refusedBefore && before.reason == refusal.Reason {
		return op, nil
	}
	return op, refusal
}

func (a *admission) forget(key string) (before refused, ok bool) {
	if len(a.refused) == 0 {
		return refused{}, false
	}
	if before, ok = a.refused[key]; ok {
		delete(a.refused, key)
		if before.reason == wire.ReasonTooMany {
			a.crowded--
		}
	}
	return before, ok
}

func (a *admission) check(ev etcd.Event) error {
	if err := a.validator.CheckKey(a.resource, ev.Key); err != nil {
		return err
	}
	return wire.CheckSize(a.resource, ev.Key, ev.Value)
}

// skips says whether an endpoint doesn't come to this region. The value isn't
// decoded (wire.BenchmarkEndpointScope).
func (a *admission) skips(value []byte) bool {
	return a.regional && a.resource == wire.Endpoints && wire.EndpointScope(value) == wire.ScopeRegional
}

// fits says whether the budget has room for a key.
func (a *admission) fits(key string) error {
	if used := a.budget.used(); used >= a.budget.max && !a.keeper.Holds(key) {
		return &wire.Refusal{Resource: a.resource, Key: key, Reason: wire.ReasonTooMany,
			Err: fmt.Errorf("the cluster already has %d keys", used)}
	}
	return nil
}

// room says whether there is room again for a tenth of the budget, and something
// to fill it: taking keys one by one would mean a list for each.
func (a *admission) room() bool {
	return a.crowded > 0 && a.budget.used() <= a.budget.max-(a.budget.max+9)/10
}

func asRefusal(resource wire.Resource, key string, err error) *wire.Refusal {
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		return refusal
	}
	return &wire.Refusal{Resource: resource, Key: key, Reason: wire.ReasonBadKey, Err: err}
}
