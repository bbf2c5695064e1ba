// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package ondemand

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/hive/cell"
)

const (
	// restoreTimeout is how long the table of endpoints waits for what an earlier
	// process had resolved, once the clusters are known. Asking for 65,536 addresses
	// takes 13 s at the default rate.
	restoreTimeout = 30 * time.Second
	// restoreRetry is when a cluster is asked again that couldn't be.
	restoreRetry = 250 * time.Millisecond
	// lostRetry is when one is that couldn't be for restoreTimeout, and may be away for
	// days.
	lostRetry = 5 * time.Second
)

// namedClusters is how many clusters health names.
const namedClusters = 5

// restore is what an earlier process had resolved and isn't resolved again yet. It is
// under the engine's mu.
type restore struct {
	// waiting are to be asked for, asked are being, and failed are those that nobody
	// could be asked for.
	waiting []netip.Addr
	asked   map[netip.Addr]struct{}
	failed  []netip.Addr
	// all are those that the kernel followed and that were to be asked for.
	all []netip.Addr
	// over: nothing is any more, so that what is followed is what there are entries of.
	over bool
	// moved is told when there is less to do, or more room.
	moved chan struct{}
}

func newRestore() restore {
	return restore{asked: map[netip.Addr]struct{}{}, moved: make(chan struct{}, 1)}
}

// progress takes note of what became of a lookup.
func (r *restore) progress(addr netip.Addr, outcome Outcome) {
	if _, ok := r.asked[addr]; !ok {
		return
	}
	delete(r.asked, addr)
	switch outcome {
	case OutcomeUnavailable, OutcomeTimeout, OutcomeDropped:
		r.failed = append(r.failed, addr)
	}
	wake(r.moved)
}

// left is how many aren't resolved yet.
func (r *restore) left() int { return len(r.waiting) + len(r.asked) + len(r.failed) }

// resume asks again for what an earlier process had resolved: the map has its entries,
// and traffic uses them, so that no packet misses. It returns when that is done, or when
// it has taken too long, or with ctx; and says how many addresses were left.
func (e *engine) resume(ctx context.Context) (left int, err error) {
	select {
	case <-e.settled:
	case <-ctx.Done():
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.restoreTimeout)
	defer cancel()
	defer e.endRestore()
	if e.ready != nil {
		select {
		case <-e.ready:
		case <-ctx.Done():
			return 0, fmt.Errorf("the kernel's side isn't open yet: %w", context.Cause(ctx))
		}
	}
	lastSeen, err := e.kernel.LastSeen()
	if err != nil {
		return 0, fmt.Errorf("reading which addresses were resolved before: %w", err)
	}
	e.begin(lastSeen)
	e.resumeAll(ctx, restoreRetry, func() {})
	return e.endRestore(), nil
}

// resumeAll asks for what is left until that is nothing, or until ctx ends. It calls moved
// whenever there may be less left.
func (e *engine) resumeAll(ctx context.Context, again time.Duration, moved func()) {
	retry := time.NewTicker(again)
	defer retry.Stop()
	for {
		e.mu.Lock()
		e.resumeMore()
		left := e.restore.left()
		e.mu.Unlock()
		moved()
		if left == 0 {
			return
		}
		select {
		case <-e.restore.moved:
		case <-retry.C:
			e.mu.Lock()
			e.restore.waiting = append(e.restore.waiting, e.restore.failed...)
			e.restore.failed = nil
			e.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// lost are the clusters of what is left, with how many addresses of each, and their sum.
func (e *engine) lost() (clusters map[string]int, sum int) {
	clusters = map[string]int{}
	e.mu.Lock()
	defer e.mu.Unlock()
	count := func(addr netip.Addr) {
		// What isn't a remote cluster's any more is forgotten with its turn.
		if owner, ok := e.cidrs.owner(addr); ok && owner.trust != byLocal && !e.entries.addresses.Contains(addr) {
			clusters[owner.cluster]++
			sum++
		}
	}
	for _, addr := range e.restore.waiting {
		count(addr)
	}
	for _, addr := range e.restore.failed {
		count(addr)
	}
	for addr := range e.restore.asked {
		count(addr)
	}
	return clusters, sum
}

// resumeLost goes on asking for what couldn't be asked for in time. The map has it no
// longer, and a packet of it would be lost as any first packet is, so that health says of
// which clusters it is.
func (e *engine) resumeLost(ctx context.Context, health cell.Health) {
	reported := ""
	e.resumeAll(ctx, e.lostRetry, func() {
		clusters, sum := e.lost()
		names := slices.Sorted(maps.Keys(clusters))
		if sum == 0 {
			return
		}
		counts := make([]string, 0, namedClusters)
		for _, name := range names[:min(len(names), namedClusters)] {
			counts = append(counts, fmt.Sprintf("%d of %q", clusters[name], name))
		}
		if len(names) > namedClusters {
			counts = append(counts, fmt.Sprintf("and of %d more clusters", len(names)-namedClusters))
		}
		if text := strings.Join(counts, ", "); text != reported {
			reported = text
			health.Degraded("Not all that was resolved before the restart is in the map again",
				fmt.Errorf("%d addresses can't be asked for, and were dropped: %s", sum, text))
		}
	})
}

// begin notes what is to be asked for: what a remote cluster still has and was used
// within the time to live. The others are no longer followed.
func (e *engine) begin(lastSeen map[netip.Addr]time.Duration) {
	now := e.monotonic()
	var forget []netip.Addr
	e.mu.Lock()
	for addr, seen := range lastSeen {
		owner, ok := e.cidrs.owner(addr)
		switch {
		case e.entries.addresses.Contains(addr): // it was resolved in the meantime
		case !ok || owner.trust == byLocal || seen > 0 && now-seen > e.config.TTL:
			forget = append(forget, addr)
		default:
			e.restore.waiting = append(e.restore.waiting, addr)
		}
	}
	e.restore.all = slices.Clone(e.restore.waiting)
	e.mu.Unlock()
	e.forget(forget)
}

// resumeMore queues as many as there is room for. It is called with mu held.
func (e *engine) resumeMore() {
	r := &e.restore
	for len(r.waiting) > 0 && !e.queue.full(own) {
		addr := r.waiting[len(r.waiting)-1]
		r.waiting = r.waiting[:len(r.waiting)-1]
		owner, ok := e.cidrs.owner(addr)
		if !ok || owner.trust == byLocal || e.entries.addresses.Contains(addr) {
			continue // withdrawn meanwhile, and nothing of it is kept; or resolved by a miss
		}
		r.asked[addr] = struct{}{}
		e.enqueue(&lookup{
			question: Question{Cluster: owner.cluster, ClusterID: owner.clusterID, Addr: addr},
			iface:    own,
		})
	}
	e.pump()
}

// endRestore has the kernel follow only what was resolved: there is no room for what
// couldn't be and for all that may be resolved now. It says how many addresses are left.
func (e *engine) endRestore() (left int) {
	e.mu.Lock()
	r := &e.restore
	left = r.left()
	forget := slices.DeleteFunc(r.all, e.entries.addresses.Contains)
	r.all, r.over = nil, true
	e.mu.Unlock()
	e.forget(forget)
	return left
}

// reopened has a kernel's side that was opened late, or anew, know what it missed: the
// pod CIDRs, and whose use is to be noted.
func (e *engine) reopened() {
	wake(e.opened)
	e.writing.Lock()
	defer e.writing.Unlock()
	lastSeen, err := e.kernel.LastSeen()
	if err != nil {
		e.kernelFailed(fmt.Errorf("reading whose use is noted: %w", err))
	}
	var forget []netip.Addr
	e.mu.Lock()
	follow := e.entries.addresses.Keys()
	if e.restore.over {
		for addr := range lastSeen {
			if !e.entries.addresses.Contains(addr) {
				forget = append(forget, addr)
			}
		}
	}
	e.mu.Unlock()
	e.forget(forget)
	if err := e.kernel.Follow(follow...); err != nil {
		e.kernelFailed(fmt.Errorf("following the use of %d addresses: %w", len(follow), err))
	}
}

func (e *engine) forget(addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	if err := e.kernel.Forget(addrs...); err != nil {
		e.kernelFailed(fmt.Errorf("no longer following the use of %d addresses: %w", len(addrs), err))
	}
}

// restart is the job that has the tables wait for what was resolved before.
func (e *engine) restart(done func()) func(context.Context, cell.Health) error {
	return func(ctx context.Context, health cell.Health) error {
		health.OK("Asking for what was resolved before")
		left, err := e.resume(ctx)
		if ctx.Err() != nil {
			return nil
		}
		done()
		switch {
		case err != nil:
			e.log.Warn("What was resolved before is lost: it is resolved again when packets miss it", "error", err)
			// It is over, and no reason to count as degraded from now on.
			health.OK("What was resolved before is lost, and resolved again when packets miss it: " + err.Error())
		case left > 0:
			clusters, _ := e.lost()
			e.log.Warn("Not all that was resolved before could be asked for again, and it is dropped: it is asked for until it can be",
				"count", left, "waited", e.restoreTimeout, "clusters", clusters)
			e.resumeLost(ctx, health)
			if ctx.Err() == nil {
				health.OK("Done")
			}
		default:
			health.OK("Done")
		}
		return nil
	}
}
