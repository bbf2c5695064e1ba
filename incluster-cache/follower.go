// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/cilium/hive/cell"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// backoffFirst and backoffLast bound the pauses between two rounds through all
	// replicas. Agents that lost a replica together must not come back together:
	// each pause is at random between nothing and twice what the back-off says. Of
	// 5,000 agents without any replica 1,000 knock in a second, at a port that is
	// closed.
	backoffFirst = 500 * time.Millisecond
	backoffLast  = 5 * time.Second
	// fillingFirst and fillingLast bound the pauses between two looks for a complete
	// replica while one is read that isn't, each at random as above. Of 5,000 agents
	// whose only replica takes a minute to fill some 170 connect to others in a second.
	fillingFirst = time.Second
	fillingLast  = 30 * time.Second
	// changeJitter is the longest wait before a connection is made anew because the
	// cache has said something else about itself, which all agents of a replica hear
	// at once.
	changeJitter = 5 * time.Second
)

// follower keeps the tables up with the cache: it reads one replica at a time, and
// goes on to another when that is lost. While there is none, what is known stays.
type follower struct {
	log       *slog.Logger
	cluster   wire.ClusterInfo
	node      string
	dial      func(ctx context.Context, address string) (net.Conn, error)
	local     *ingest.Local
	source    *source
	directory *directory
	// rebalance is the mean time between two looks for a replica that the node
	// prefers; 0 is never.
	rebalance time.Duration
	// filling makes the pauses between two looks for a complete replica.
	filling func() wait.Backoff

	// What follows belongs to the job.
	//
	// last is the replica that was lost last: the others come first.
	last string
	// next is a connection to be read now.
	next *connection
}

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: backoffFirst, Factor: 2, Steps: 20, Cap: backoffLast}
}

func newFilling() wait.Backoff {
	return wait.Backoff{Duration: fillingFirst, Factor: 2, Steps: 20, Cap: fillingLast}
}

// run is the job. It ends with ctx only.
func (f *follower) run(ctx context.Context, health cell.Health) error {
	f.source.reportTo(health)
	if err := f.directory.open(ctx); err != nil && ctx.Err() == nil {
		f.source.lost(err)
	}
	backoff := newBackoff()
	for ctx.Err() == nil {
		var pause time.Duration
		switch f.round(ctx) {
		case moved:
			continue
		case changed:
			pause = rand.N(changeJitter)
		case lost:
			backoff = newBackoff()
			fallthrough
		case failed:
			pause = rand.N(2 * backoff.Step())
		}
		if !sleep(ctx, pause) {
			break
		}
	}
	return f.giveUp()
}

// outcome says how a round ended.
type outcome int

const (
	// failed: no replica could be read.
	failed outcome = iota
	// lost: one was, and the next loss is a new one. Should it be lost again and again,
	// the jitter of lists is longer than the connections, and none is made.
	lost
	// moved: the next round has something to read.
	moved
	// changed: the replica has to be looked at again, as all that read it know.
	changed
)

// round tries the replicas in the order of preference, and reads the first that can
// be and is complete: else the first that can be. What that lacks it will have, and
// nothing is taken away before it does.
func (f *follower) round(ctx context.Context) outcome {
	if conn := f.next; conn != nil {
		f.next = nil
		return f.session(ctx, conn)
	}
	conn := f.choose(ctx, f.order(), f.source.lost)
	if conn != nil {
		return f.session(ctx, conn)
	}
	if ctx.Err() != nil {
		return failed
	}
	if err := f.directory.failed(ctx); err != nil && ctx.Err() == nil {
		f.source.lost(err)
	}
	return failed
}

// choose connects to the first of the replicas that is complete, or else to the first
// that may be read; nil if there is none, or ctx ends. Each failure is told.
func (f *follower) choose(ctx context.Context, order []replica, failure func(error)) (chosen *connection) {
	leave := func() {
		if chosen != nil {
			f.leave(chosen)
		}
	}
	for _, r := range order {
		conn, err := f.connect(ctx, r)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				f.leave(conn)
			}
			leave()
			return nil
		case err != nil:
			failure(err)
		case conn.complete():
			leave()
			return conn
		case chosen == nil:
			chosen = conn
		default:
			f.leave(conn)
		}
	}
	return chosen
}

// leave closes a connection that isn't read.
func (f *follower) leave(conn *connection) {
	if err := conn.client.Close(); err != nil {
		f.log.Debug("Closing a connection to the cache failed", "backend", conn.address, "error", err)
	}
}

// session reads one replica for as long as that lasts.
func (f *follower) session(ctx context.Context, conn *connection) outcome {
	f.last = ""
	f.directory.answered()
	f.source.connected(conn.address, conn.seen.etcdID, conn.config)
	err := errors.Join(f.read(ctx, conn), conn.client.Close())
	switch {
	case ctx.Err() != nil:
		return failed
	case errors.Is(err, errPreferred):
		f.source.leaving(err)
		return moved
	case errors.Is(err, errConfigChanged):
		f.source.leaving(err)
		return changed
	}
	f.source.lost(fmt.Errorf("reading %s: %w", conn.address, err))
	f.last = conn.address
	f.follow(conn)
	return lost
}

// giveUp closes what the next round would have read.
func (f *follower) giveUp() error {
	if f.next == nil {
		return nil
	}
	return f.next.client.Close()
}

// order is that of preference, with the replica that was lost last at the end.
func (f *follower) order() []replica {
	order := ranked(f.node, f.directory.replicas())
	for i, r := range order {
		if r.address == f.last {
			return append(slices.Delete(order, i, i+1), r)
		}
	}
	return order
}

// follow takes over what the cache says of its own Services, once the tables have
// what this replica has of them: before, they may say less than the API server did.
func (f *follower) follow(conn *connection) {
	if f.local.Has(wire.Services, conn.seen.etcdID, conn.seen.revision) {
		f.directory.follow()
	}
}

// awaitComplete waits until the replica that is read has all that it offers, which
// is false, or until another has, which is then connected as the next one. It is
// false as well when ctx ends.
func (f *follower) awaitComplete(ctx context.Context, conn *connection) bool {
	filling := f.filling()
	for now := *conn; !now.complete(); {
		if !sleep(ctx, rand.N(2*filling.Step())) {
			return false
		}
		seen, err := look(ctx, conn.client, f.cluster.Name)
		if err != nil {
			// One that is filling may be busy. If the connection is lost, ctx ends.
			f.log.Debug("Looking at the replica that is read failed", "backend", conn.address, "error", err)
		} else if now.seen = seen; now.complete() {
			return false
		}
		others := slices.DeleteFunc(f.order(), func(r replica) bool { return r.address == conn.address })
		next := f.choose(ctx, others, func(err error) {
			f.log.Debug("A replica of the cache can't be read", "error", err)
		})
		switch {
		case next == nil:
		case next.complete():
			f.next = next
			return true
		default:
			f.leave(next)
		}
	}
	return false
}

// preferOther waits until there is a replica to move to, which is then connected as
// the next one; false when ctx ends. A replica that was restarted has nobody, as the
// agents that it had read others by then: those whose first choice it is come to it,
// each at a time of its own, within one and a half of the intervals.
func (f *follower) preferOther(ctx context.Context, conn *connection) bool {
	if f.rebalance <= 0 {
		return false
	}
	for sleep(ctx, f.rebalance/2+rand.N(f.rebalance)) {
		if slices.Contains(conn.config.Resources, wire.Services) {
			f.follow(conn)
		} else if err := f.directory.ask(ctx); err != nil {
			f.log.Info("Looking for other replicas of the cache failed", "error", err)
		}
		order := ranked(f.node, f.directory.replicas())
		if len(order) == 0 || order[0].address == conn.address {
			continue
		}
		next, err := f.connect(ctx, order[0])
		if err != nil {
			f.log.Debug("The preferred replica of the cache can't be read", "error", err)
			continue
		}
		if !next.complete() {
			f.leave(next)
			continue
		}
		f.next = next
		return true
	}
	return false
}

// sleep waits for d, and is false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
