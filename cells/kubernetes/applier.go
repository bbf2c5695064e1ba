// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/hive/cell"

	"github.com/waggle-mesh/waggle/cells/state"
)

// collector is a reflector as the applier sees it.
type collector interface {
	name() string
	collect() func(*state.Txn)
	complete() bool
	setWake(func())
}

// batchSpacing is the least time between the starts of two transactions. The
// first event after a quiet moment is applied at once; those of a burst gather
// for what is left of it. 5 ms bound what an event waits, to a quarter of the
// 20 ms that an edit may take, and the rate of commits, to 200 a second.
const batchSpacing = 5 * time.Millisecond

// applier turns what all reflectors gathered into one transaction after the
// other. It is the only goroutine that applies, so what joins several kinds
// needs no locks.
type applier struct {
	writer  *state.Writer
	metrics *Metrics
	wakeup  chan struct{}
	// spacing is batchSpacing, or what the hive says.
	spacing time.Duration
	// connections are left unread meanwhile; nil is none.
	connections *connections

	collectors []collector
	// joins run at the end of each transaction, over what it changed.
	joins []func(*state.Txn)
	// milestones mark tables as initialized.
	milestones []milestone
}

// milestone marks a table as initialized as soon as all its kinds are listed.
type milestone struct {
	kinds []collector
	done  func(*state.Txn)
}

func newApplier(writer *state.Writer, metrics *Metrics) *applier {
	return &applier{writer: writer, metrics: metrics, wakeup: make(chan struct{}, 1), spacing: batchSpacing}
}

// add takes in a reflector; only before run. Reflectors are applied in the
// order in which they were added.
func (a *applier) add(c collector) {
	c.setWake(a.wake)
	a.collectors = append(a.collectors, c)
}

// wake never blocks; many calls before the applier looks are one.
func (a *applier) wake() {
	select {
	case a.wakeup <- struct{}{}:
	default:
	}
}

// run applies batches until ctx ends.
func (a *applier) run(ctx context.Context, health cell.Health) error {
	health.OK("Waiting for the first lists")
	a.advance(nil) // milestones that wait for nothing
	spacing := time.NewTimer(0)
	defer spacing.Stop()
	defer a.connections.read() // others may use them
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-spacing.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.wakeup:
		}
		spacing.Reset(a.spacing)
		a.connections.leaveUnread(a.spacing)
		a.applyAll()
		health.OK(a.describe())
	}
}

// applyAll applies everything that is pending in one transaction.
func (a *applier) applyAll() {
	var batch []func(*state.Txn)
	for _, c := range a.collectors {
		if apply := c.collect(); apply != nil {
			batch = append(batch, apply)
		}
	}
	if len(batch) == 0 {
		return
	}
	tx := a.writer.Begin()
	for _, apply := range batch {
		apply(tx)
	}
	for _, join := range a.joins {
		join(tx)
	}
	a.advance(tx)
	tx.Commit()
	a.metrics.Batches.Inc()
}

// advance marks the tables initialized whose kinds are all listed. tx may be
// nil, in which case there is a transaction of its own if one is needed.
func (a *applier) advance(tx *state.Txn) {
	waiting := a.milestones[:0]
	own := tx == nil
	for _, m := range a.milestones {
		if !allComplete(m.kinds...) {
			waiting = append(waiting, m)
			continue
		}
		if tx == nil {
			tx = a.writer.Begin()
		}
		m.done(tx)
	}
	clear(a.milestones[len(waiting):])
	a.milestones = waiting
	if own && tx != nil {
		tx.Commit()
	}
}

func (a *applier) describe() string {
	if len(a.milestones) == 0 {
		return "All kinds are listed and watched"
	}
	for _, c := range a.collectors {
		if !c.complete() {
			return fmt.Sprintf("Waiting for the first list of %s", c.name())
		}
	}
	return "Listed"
}

func allComplete(kinds ...collector) bool {
	for _, k := range kinds {
		if !k.complete() {
			return false
		}
	}
	return true
}
