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

// run is the job. It ends with ctx only.
func (f *follower) run(ctx context.Context, health cell.Health) error {
	f.source.reportTo(health)
	if err := f.directory.open(ctx); err != nil && ctx.Err() == nil {
		f.source.lost(err)
	}
	backoff := newBackoff()
	for ctx.Err() == nil {
		switch f.round(ctx) {
		case moved:
			continue
		case lost:
			backoff = newBackoff()
		}
		if !sleep(ctx, rand.N(2*backoff.Step())) {
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
)

// round tries the replicas in the order of preference, and reads the first that
// can be.
func (f *follower) round(ctx context.Context) outcome {
	if conn := f.next; conn != nil {
		f.next = nil
		return f.session(ctx, conn)
	}
	for _, r := range f.order() {
		conn, err := f.connect(ctx, r)
		if err == nil {
			return f.session(ctx, conn)
		}
		if ctx.Err() != nil {
			return failed
		}
		f.source.lost(err)
	}
	if err := f.directory.failed(ctx); err != nil && ctx.Err() == nil {
		f.source.lost(err)
	}
	return failed
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
	case errors.Is(err, errPreferred), errors.Is(err, errConfigChanged):
		f.source.leaving(err)
		return moved
	}
	f.source.lost(fmt.Errorf("reading %s: %w", conn.address, err))
	f.last = conn.address
	f.directory.follow()
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
			f.directory.follow()
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
