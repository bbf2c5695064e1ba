// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package inclustercache

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/cilium/hive/cell"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/ingest"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

const (
	// backoffFirst and backoffLast bound the pauses between two rounds through all
	// replicas. Thousands of agents wait for the same one: each pause is between
	// nothing and twice the last one's base.
	backoffFirst = 250 * time.Millisecond
	backoffLast  = 30 * time.Second
	// steady is how long a session lasts to count as a success.
	steady = 10 * time.Second
	// moveJitter spreads the agents of a replica that died over time.
	moveJitter = time.Second
)

// follower keeps the tables up with the cache: it reads one replica at a time, and
// goes on to another when that is lost. While there is none, what is known stays.
type follower struct {
	log     *slog.Logger
	cluster wire.ClusterInfo
	node    string
	// etcd is the configuration of clients, but for endpoint and dialer.
	etcd    etcd.ClientConfig
	dial    func(ctx context.Context, address string) (net.Conn, error)
	local   *ingest.Local
	source  *source
	backoff func() wait.Backoff

	// What follows belongs to the job.
	replicas []replica
	// last is the one that was lost last; the others come first.
	last string
}

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: backoffFirst, Factor: 2, Steps: 20, Cap: backoffLast}
}

// run is the job. It ends with ctx only.
func (f *follower) run(ctx context.Context, health cell.Health) error {
	f.source.reportTo(health)
	backoff := f.backoff()
	for ctx.Err() == nil {
		followed := f.round(ctx)
		if followed {
			backoff = f.backoff()
		}
		// Of full width, so that agents which lost a replica together don't stay
		// together.
		if !sleep(ctx, rand.N(2*backoff.Step())) {
			return nil
		}
	}
	return nil
}

// round tries the replicas in the order of preference, until one was read for a
// while or all have failed.
func (f *follower) round(ctx context.Context) (followed bool) {
	for _, r := range f.order() {
		began := time.Now()
		read, err := f.session(ctx, r)
		if ctx.Err() != nil {
			return false
		}
		f.source.lost(err)
		f.last = r.address
		if read && time.Since(began) > steady {
			return true
		}
		if read && !errors.Is(err, errConfigChanged) && !sleep(ctx, rand.N(moveJitter)) {
			return false
		}
	}
	return false
}

// order is that of preference, with the replica that was lost last at the end.
func (f *follower) order() []replica {
	order := ranked(f.node, f.replicas)
	for i, r := range order {
		if r.address == f.last {
			return append(append(order[:i:i], order[i+1:]...), r)
		}
	}
	return order
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
