// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kvstoremesh

import (
	"errors"
	"fmt"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// budget is how many keys one cluster may have. Its resources share it.
type budget struct{ max, used int }

// admission decides which events of one resource of one cluster are taken. It
// does no I/O, and remembers only the keys that it refused.
//
// What is refused is as if the source didn't have it: a key whose new value is
// refused is deleted, so that the outcome is that of a fresh start.
type admission struct {
	resource  wire.Resource
	validator *wire.Validator
	budget    *budget
	refused   map[string]wire.Reason
	crowded   int // of them, those that were too many
}

func newAdmission(resource wire.Resource, validator *wire.Validator, budget *budget) *admission {
	return &admission{resource: resource, validator: validator, budget: budget, refused: make(map[string]wire.Reason)}
}

// admit appends what an event asks of the local etcd. The error is a
// *wire.Refusal; there may be an operation beside it.
func (a *admission) admit(ops []etcd.Op, ev etcd.Event) ([]etcd.Op, error) {
	reason, refusedBefore := a.refused[ev.Key]
	acceptedBefore := !ev.New && !refusedBefore
	if refusedBefore {
		delete(a.refused, ev.Key)
		if reason == wire.ReasonTooMany {
			a.crowded--
		}
	}
	if ev.Deleted {
		if acceptedBefore {
			a.budget.used--
			ops = append(ops, etcd.Op{Key: ev.Key, Delete: true})
		}
		return ops, nil
	}
	err := a.check(ev, acceptedBefore)
	if err == nil {
		if !acceptedBefore {
			a.budget.used++
		}
		return append(ops, etcd.Op{Key: ev.Key, Value: ev.Value}), nil
	}
	refusal := asRefusal(a.resource, ev.Key, err)
	a.refused[ev.Key] = refusal.Reason
	if refusal.Reason == wire.ReasonTooMany {
		a.crowded++
	}
	if acceptedBefore {
		a.budget.used--
		ops = append(ops, etcd.Op{Key: ev.Key, Delete: true})
	}
	return ops, refusal
}

func (a *admission) check(ev etcd.Event, acceptedBefore bool) error {
	if err := a.validator.CheckKey(a.resource, ev.Key); err != nil {
		return err
	}
	if err := wire.CheckSize(a.resource, ev.Key, ev.Value); err != nil {
		return err
	}
	if !acceptedBefore && a.budget.used >= a.budget.max {
		return &wire.Refusal{Resource: a.resource, Key: ev.Key, Reason: wire.ReasonTooMany,
			Err: fmt.Errorf("the cluster already has %d keys", a.budget.used)}
	}
	return nil
}

// room gives the keys that were too many, once there is room again for a tenth
// of the budget: taking them one by one would mean a list for each.
func (a *admission) room() []string {
	if a.crowded == 0 || a.budget.used > a.budget.max-(a.budget.max+9)/10 {
		return nil
	}
	var keys []string
	for key, reason := range a.refused {
		if reason == wire.ReasonTooMany {
			keys = append(keys, key)
		}
	}
	return keys
}

func asRefusal(resource wire.Resource, key string, err error) *wire.Refusal {
	var refusal *wire.Refusal
	if errors.As(err, &refusal) {
		return refusal
	}
	return &wire.Refusal{Resource: resource, Key: key, Reason: wire.ReasonBadKey, Err: err}
}
