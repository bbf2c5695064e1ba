// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"

	"github.com/cilium/hive/cell"
)

// report tells health how it stands, and gives what it told. Health is a table
// too: it isn't written for each change of an endpoint.
func (r *reconciler) report(health cell.Health, said string) string {
	claims := r.wanted.claims
	now := fmt.Sprintf("%d nodes, %d prefixes with several owners", len(claims.nodes), len(claims.contested))
	if n := len(r.failed); n > 0 {
		now = fmt.Sprintf("%d entries aren't in the map as they should be", n)
	}
	if r.unpruned != nil {
		now += ", and what else is in the map isn't known"
	}
	if now == said {
		return said
	}
	for _, err := range r.failed {
		health.Degraded(now, err)
		return now
	}
	if r.unpruned != nil {
		health.Degraded(now, r.unpruned)
		return now
	}
	health.OK(now)
	return now
}

// reportOverflow tells of overflow when its count isn't what it was before.
func (r *reconciler) reportOverflow(before int) {
	now := len(r.overflow)
	if now == before {
		return
	}
	r.target.overflow.Store(int64(now))
	if now == 0 {
		r.health.OK("Everything fits")
		r.log.Info("All entries fit into the ipcache map again")
		return
	}
	r.health.Degraded(fmt.Sprintf("%d entries don't fit (--%s=%d)", now, flagMapMax, r.target.Capacity()), ErrFull)
	if r.logLimit.Allow() {
		r.log.Error("The ipcache map is full: traffic to and from some addresses has no identity",
			"notFitting", now,
			"capacity", r.target.Capacity(),
			"remedy", "raise --"+flagMapMax,
		)
	}
}
