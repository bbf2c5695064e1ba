// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	upstream "github.com/cilium/cilium/clustermesh-apiserver/kvstoremesh"
	mesh "github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/hive"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3/concurrency"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/waggle-mesh/waggle/cells/etcd"
)

const (
	// lockName is upstream's, so that its replicas and ours wait for each other while
	// one is replaced by the other.
	lockName = kvstore.BaseKeyPrefix + "/kvstoremesh-lock"
	// readyAfter is how long a replica waits to be the leader before it says that it is
	// ready: when it is to replace one that is about to end, it shouldn't be ready before
	// it has taken over.
	readyAfter = 10 * time.Second
	// tryTimeout is how long an etcd may take to say who has the lock until that is a problem.
	tryTimeout = 5 * time.Second
	// resignTimeout bounds what is asked of etcd at the end, which may have ended before.
	resignTimeout = 2 * time.Second
)

// errLeadershipLost ends the process: another replica may be the leader by now, and
// what this one knows of the local etcd is no longer so.
var errLeadershipLost = errors.New("leader election lost")

// leaderElectionCell has the leader's lifecycle started once this replica is the leader,
// and stopped before another one is.
var leaderElectionCell = cell.Module(
	"leader-election",
	"One KVStoreMesh at a time on a local etcd",

	// Who has lost the lock, and doesn't know yet, writes nothing any more.
	cell.Provide(
		func() *etcd.Fence { return &etcd.Fence{} },
		func(fence *etcd.Fence) etcd.WriterOptions { return etcd.WriterOptions{Fence: fence} },
	),
	cell.Invoke(registerElection),
)

type electionParams struct {
	cell.In

	Log        *slog.Logger
	Lifecycle  cell.Lifecycle
	Jobs       job.Group
	Shutdowner hive.Shutdowner
	Client     *etcd.Client
	Fence      *etcd.Fence
	Leader     *upstream.LeaderLifecycle
	Metrics    mesh.Metrics
	Readiness  readiness
	Times      electionTimes `optional:"true"`
}

// electionTimes are those of tests. Where one is 0 it is the usual one.
type electionTimes struct {
	// lockTTL is the time to live of the lock's lease.
	lockTTL    time.Duration
	readyAfter time.Duration
}

// election is one replica's part in it.
type election struct {
	electionParams
	cancel context.CancelFunc
	ended  chan struct{}
}

func registerElection(p electionParams) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &election{electionParams: p, cancel: cancel, ended: make(chan struct{})}
	p.Jobs.Add(job.OneShot("leader", func(_ context.Context, health cell.Health) error {
		defer close(e.ended)
		return e.run(ctx, health)
	}))
	// The group of jobs may be stopped after what the leader uses.
	p.Lifecycle.Append(cell.Hook{OnStop: e.stop})
}

// stop ends the leader's part, and then its leadership.
func (e *election) stop(ctx cell.HookContext) error {
	e.cancel()
	select {
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of the leadership: %w", context.Cause(ctx))
	}
}

// run waits to be the leader, and is until ctx ends or the leadership does. That ends
// the process.
func (e *election) run(ctx context.Context, health cell.Health) error {
	e.Metrics.LeaderElectionStatus.Set(0)
	health.OK("Waiting for the local etcd")
	session, err := e.session(ctx, health)
	if err != nil {
		return nil // ctx ended
	}
	defer e.resign(session)
	lock := concurrency.NewMutex(session, lockName)
	if err = e.lock(ctx, session, lock, health); err == nil {
		e.Fence.Hold(lock.IsOwner())
		err = e.lead(ctx, session, health)
	}
	if ctx.Err() != nil {
		return nil
	}
	health.Degraded("This replica can't be the leader", err)
	e.Shutdowner.Shutdown(hive.ShutdownWithError(err))
	return nil
}

// session takes the lease that the lock will be on, as soon as the etcd is there.
func (e *election) session(ctx context.Context, health cell.Health) (*concurrency.Session, error) {
	var session *concurrency.Session
	said := ""
	waits := func(err error) {
		health.Degraded("Waiting for the local etcd", err)
		if text := err.Error(); text != said { // each reason once
			said = text
			e.Log.Warn("Waiting for the local etcd", "error", err)
		}
	}
	err := e.insist(ctx, health, "taking a lease for the leader election", func(ctx context.Context) error {
		if _, err := e.Client.WaitReady(ctx, lockName, waits); err != nil {
			return err
		}
		asking, cancel := context.WithTimeout(ctx, defaults.LockLeaseTTL)
		defer cancel()
		lease, err := e.Client.Etcd().Grant(asking, int64(cmp.Or(e.Times.lockTTL, defaults.LockLeaseTTL).Seconds()))
		if err != nil {
			return err
		}
		// The session outlives ctx: the lock is held while the leader's part ends.
		session, err = concurrency.NewSession(e.Client.Etcd(), concurrency.WithLease(lease.ID))
		return err
	})
	return session, err
}

// lock waits for this replica's turn. That another one is the leader is said once the
// etcd has, and by nobody else but who says later that it is this one.
func (e *election) lock(ctx context.Context, session *concurrency.Session, lock *concurrency.Mutex, health cell.Health) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(session.Ctx(), func() { cancel(errLeadershipLost) })
	defer stop()
	waiting := time.AfterFunc(cmp.Or(e.Times.readyAfter, readyAfter), e.Readiness.ready)
	defer waiting.Stop()
	e.Log.Info("Acquiring the lock of the leader", "key", lockName)
	health.OK("Acquiring the lock of the leader")
	return e.insist(ctx, health, "acquiring the lock of the leader", func(ctx context.Context) error {
		trying, cancel := context.WithTimeout(ctx, tryTimeout)
		err := lock.TryLock(trying)
		cancel()
		if !errors.Is(err, concurrency.ErrLocked) {
			return err
		}
		e.Log.Info("Another replica is the leader, waiting for it to end")
		health.OK("Another replica is the leader, waiting for it to end")
		return lock.Lock(ctx)
	})
}

// insist does something with the local etcd until it succeeds or ctx ends, whose cause
// it returns. What do says of health holds until it fails.
func (e *election) insist(ctx context.Context, health cell.Health, doing string, do func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second}
	for failed := false; ; failed = true {
		err := do(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !failed:
			e.Log.Warn("The local etcd has a problem, trying again", "doing", doing, "error", err)
		}
		health.Degraded("The local etcd has a problem, trying again", fmt.Errorf("%s: %w", doing, err))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(backoff.Step()):
		}
	}
}

// lead has the leader's cells work until ctx or the leadership ends.
func (e *election) lead(ctx context.Context, session *concurrency.Session, health cell.Health) error {
	e.Log.Info("This replica is the leader")
	e.Metrics.LeaderElectionStatus.Set(1)
	defer e.Metrics.LeaderElectionStatus.Set(0)
	health.OK("This replica is the leader")

	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(session.Ctx(), cancel)
	defer stop()
	err := e.Leader.Start(e.Log, leading)
	if err == nil {
		<-leading.Done()
	}
	if ctx.Err() == nil && session.Ctx().Err() != nil {
		err = errLeadershipLost
	}
	stopping, done := context.WithTimeout(context.Background(), defaults.HiveStopTimeout)
	defer done()
	return errors.Join(err, e.Leader.Stop(e.Log, stopping))
}

// resign lets another replica be the leader at once, rather than when the lease has run
// out.
func (e *election) resign(session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.Background(), resignTimeout)
	defer cancel()
	if _, err := e.Client.Etcd().Revoke(ctx, session.Lease()); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		e.Log.Warn("Giving the lock of the leader back failed, it runs out instead", "after", defaults.LockLeaseTTL, "error", err)
	}
}
